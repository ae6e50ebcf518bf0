"""What runs inside a sandbox: the supervisor and the operations of our tools.

Standard library only, any Python from 3.9. It travels as one archive (``sandbox/archives.py``) and imports nothing
else of RollStream. The worker treats every byte that comes out of it as untrusted.
"""
