"""Arguments of tools that try to reach or to break something else than a file of the workspace."""

# ruff: noqa: E501 -- a payload is a line

from __future__ import annotations

from typing import Any

PREPARED = (
    "ln -s / root; ln -s loop loop; ln -s /proc/self/environ env; ln -s /dev/zero zeros; mkfifo pipe; mkdir -p a/b;"
    " echo found > $'line\\nend\\x1b[2Jname'; echo found > -rf; echo found > '$(touch pwned)'; echo found > ';touch pwned';"
    " printf 'found\\xff\\xfe\\n' > bytes; printf '\\xe2\\x80\\xaefound\\n' > bidi; truncate -s 60M huge;"
    " d=x; for n in {1..200}; do mkdir $d && cd $d; done; cd /workspace; echo found > target; ln target hard"
)
"""Run in the workspace by bash, before."""

ARGUMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "dots": ("str_replace_editor", {"command": "view", "path": "../../../../etc/shadow"}),
    "a link out": ("str_replace_editor", {"command": "view", "path": "root/etc/shadow"}),
    "a link that turns round": ("str_replace_editor", {"command": "view", "path": "loop"}),
    "a link to the environment": ("str_replace_editor", {"command": "view", "path": "env"}),
    "a link to what never ends": ("str_replace_editor", {"command": "view", "path": "zeros"}),
    "a pipe": ("str_replace_editor", {"command": "view", "path": "pipe"}),
    "a pipe to write to": ("str_replace_editor", {"command": "create", "path": "pipe/x", "file_text": "x"}),
    "memory of process 1": ("str_replace_editor", {"command": "view", "path": "/proc/1/mem"}),
    "one's own memory": ("str_replace_editor", {"command": "view", "path": "/proc/self/mem"}),
    "one's own input": ("str_replace_editor", {"command": "view", "path": "/proc/self/fd/0"}),
    "the supervisor": ("str_replace_editor", {"command": "create", "path": "/run/rollstream.pyz", "file_text": "x"}),
    "a program": ("str_replace_editor", {"command": "create", "path": "/usr/bin/env", "file_text": "x"}),
    "a device": ("str_replace_editor", {"command": "create", "path": "/dev/null/x", "file_text": "x"}),
    "limits of process 1": ("str_replace_editor", {"command": "create", "path": "/proc/1/oom_score_adj", "file_text": "1000"}),
    "a folder in place of a file": ("str_replace_editor", {"command": "create", "path": "a", "file_text": "x"}),
    "no name": ("str_replace_editor", {"command": "create", "path": "/", "file_text": "x"}),
    "a name too long": ("str_replace_editor", {"command": "create", "path": "x" * 300, "file_text": "x"}),
    "a path too long": ("str_replace_editor", {"command": "view", "path": "x/" * 2000}),
    "the middle of nowhere": ("str_replace_editor", {"command": "view", "path": "x/" * 100}),
    "an address": ("str_replace_editor", {"command": "view", "path": "http://169.254.169.254/latest"}),
    "a home": ("str_replace_editor", {"command": "view", "path": "~root/.ssh/id_rsa"}),
    "a line far away": ("str_replace_editor", {"command": "view", "path": "target", "view_range": [10**9, 10**10]}),
    "a line before the first": ("str_replace_editor", {"command": "view", "path": "target", "view_range": [-5, 3]}),
    "a text that is nowhere": ("str_replace_editor", {"command": "str_replace", "path": "target", "old_str": "\x1b]0;x\x07", "new_str": "x"}),
    "an option for a path": ("find_text", {"pattern": "shadow-of-root", "path": "--pre=sh"}),
    "an option for a pattern": ("find_text", {"pattern": "--files", "path": "."}),
    "a link to all": ("find_text", {"pattern": "root:x:0", "path": "root/etc"}),
    "all of the kernel": ("find_text", {"pattern": "shadow-of-root", "path": "/proc/self/attr"}),
    "all devices": ("find_text", {"pattern": "shadow-of-root", "path": "/dev"}),
    "a glob that explodes": ("find_text", {"pattern": "x", "path": ".", "glob": "*a" * 200 + "["}),
    "no pattern": ("find_text", {"pattern": "(?P<x>", "path": ".", "regex": True}),
    "a pattern without end": ("find_text", {"pattern": "((((((x*)*)*)*)*)*)*$", "path": "huge", "regex": True}),
    "a pattern too deep": ("find_text", {"pattern": "(" * 500 + "x" + ")" * 500, "path": ".", "regex": True}),
    "a repetition too large": ("find_text", {"pattern": "x{1000}{1000}{1000}", "path": ".", "regex": True}),
}  # fmt: skip
"""None of them answers with a file of the host, or takes long."""
