"""Tools that come with RollStream; importing them needs no sandbox."""
