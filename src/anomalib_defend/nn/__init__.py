"""Pure tensor functions and small modules: torch, torchvision and timm only, no Lightning, no files but weights."""
