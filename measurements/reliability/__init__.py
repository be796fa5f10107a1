"""What happens when something goes wrong: each script prints its figures, docs/reliability.md lists them."""
