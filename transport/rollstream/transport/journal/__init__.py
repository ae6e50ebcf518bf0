"""The write-ahead log of episodes: what it says (pure), and how it is read and written.

A record counts for its writer when the writer has read it back; the first with a key wins, whoever wrote it.
"""
