"""File names as other systems make them."""

import os

from hypothesis import strategies as st

_in_utf8 = st.text(min_size=1, max_size=20).map(lambda name: name.encode(errors="ignore"))
_on_a_mac = st.sampled_from(["u\u0308", "\u00fc", "._0", "Thumbs.db", "@eaDir", "__MACOSX", ".."]).map(str.encode)
# What a Linux file system takes: no slash, no zero, neither '.' nor '..'; Latin-1 and other bytes too
file_names = (
    (st.binary(min_size=1, max_size=40) | _in_utf8 | _on_a_mac)
    .map(lambda name: name.replace(b"/", b"").replace(b"\0", b""))
    .filter(lambda name: name not in {b"", b".", b".."} and len(name) < 60)
    .map(os.fsdecode)
)
