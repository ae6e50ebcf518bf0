"""The archiver: the log as files, for ever; every trajectory in exactly one part."""
