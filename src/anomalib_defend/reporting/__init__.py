"""A page of a finished test or prediction: one file for a browser, which asks nothing of any network.

``figures`` computes, ``pictures`` chooses and shrinks, ``run`` finds what was run, and ``page`` puts them together;
``page_parts`` holds the template, its style and its script.
"""
