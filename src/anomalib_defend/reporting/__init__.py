"""A page of a finished test or prediction: one file for a browser, which asks nothing of any network.

``figures`` computes, ``pictures`` chooses and shrinks, ``run`` finds what was run, ``page`` puts them together, and
``rendering`` writes it. ``page_parts`` holds templates, style and scripts, also of a comparison's page.
"""
