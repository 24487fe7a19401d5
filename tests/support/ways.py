"""Ways in which programs change files, and the changes that a watcher has to report for each.

A way is a shell command, run in a directory with these files; ``d/f`` is watched:

    d/f    4,096 lines, 64 KiB       same   as long, other bytes
    long   80 KiB                    short  12 KiB

A program makes many system calls, and the watcher may compare between any two of them or only after
the last. So the expected kinds are a pattern: ``truncated? grown+`` is a regular expression whose
letters are kinds. The watcher may miss states in between, but must report every kind that the
pattern requires.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

LINES = 4096
SIZE, LONG, SHORT = 64 << 10, 80 << 10, 12 << 10

#: Another file in place of the old one: moved there, or created after the old one was removed.
MOVED = "(replaced | removed created)"
REPLACED = "replaced (metadata | changed)*"
MADE = f"{MOVED} grown* (modified | metadata | changed)*"
#: A file that is rewritten in place, and longer afterwards.
REWRITTEN = "truncated? grown+ (modified | metadata | changed)*"


@dataclass(frozen=True)
class Way:
    """One way to change the file.

    Attributes:
        name: a name for people.
        kinds: the pattern of the kinds of all changes.
        command: makes the change.
        size: the size of the file afterwards; None if there is none.
        same: whether it is the same file afterwards.
        before: a command that prepares the change, before the file is watched.
        after: a command that cleans up.
        needs: programs that must be installed.
        root: whether only root can do it.
        silent: whether the kernel raises no event, so that only a poll finds the change.
    """

    name: str
    kinds: str
    command: str
    size: int | None = SIZE
    same: bool = True
    before: str = ""
    after: str = ""
    needs: tuple[str, ...] = ()
    root: bool = False
    silent: bool = False

    def allows(self, kinds: list[str]) -> bool:
        """Tell whether a sequence of kinds fits the pattern."""
        pattern = re.sub(r"[a-z]+", r"(?:\g<0>,)", self.kinds).replace(" ", "")
        return re.fullmatch(pattern, "".join(f"{kind}," for kind in kinds)) is not None

    def obstacle(self) -> str:
        """Return why this machine cannot do it; an empty string if it can."""
        if self.root and os.geteuid() != 0:
            return "only root can"
        missing = [name for name in self.needs if not _is_installed(name)]
        return f"not installed: {', '.join(missing)}" if missing else ""


def _is_installed(name: str) -> bool:
    folders = (*os.get_exec_path(), "/usr/sbin", "/sbin")
    return any(os.access(os.path.join(folder, name), os.X_OK) for folder in folders)


IN_PLACE = [
    Way(
        "dd-notrunc",
        "modified+",
        "dd if=same of=d/f bs=4k count=3 seek=2 conv=notrunc status=none",
    ),
    Way("dd", "truncated grown*", "dd if=short of=d/f bs=4k status=none", size=SHORT),
    Way("dd-longer", "truncated? grown+", "dd if=long of=d/f bs=4k status=none", size=LONG),
    Way("truncate-shorter", "truncated", "truncate -s 5 d/f", size=5),
    Way("truncate-longer", "grown", "truncate -s +1 d/f", size=SIZE + 1),
    Way("shell-redirect", "truncated grown*", "echo anew > d/f", size=5),
    Way("shell-empty", "truncated", ": > d/f", size=0),
    Way("tee-append", "grown", "echo more | tee -a d/f > /dev/null", size=SIZE + 5),
    Way("cp", "truncated? grown+", "cp long d/f", size=LONG),
    Way("rsync-inplace", REWRITTEN, "rsync --inplace long d/f", size=LONG, needs=("rsync",)),
    Way(
        "rsync-inplace-shorter",
        "modified* truncated (modified | metadata | changed)*",
        "rsync -a --inplace short d/f",
        size=SHORT,
        needs=("rsync",),
    ),
    Way(
        "rsync-append",
        "grown+ (modified | metadata | changed)*",
        "rsync --append more d/f",
        size=SIZE + 5,
        before="cp d/f more; echo more >> more",
        needs=("rsync",),
    ),
    Way(
        "vim-backupcopy-yes",
        REWRITTEN,
        "vim -u NONE -i NONE -es +'set backup backupskip= backupcopy=yes' +'%s/^/x/' +wq d/f",
        size=SIZE + LINES,
        needs=("vim",),
    ),
    Way(
        "logrotate-copytruncate",
        "truncated",
        'logrotate -f -s "$PWD/rotated" rotation',
        size=0,
        before='echo "\\"$PWD/d/f\\" { rotate 2\n copytruncate\n }" > rotation',
        needs=("logrotate",),
    ),
    Way("fallocate", "grown", "fallocate -l 80k d/f", size=LONG, needs=("fallocate",)),
    Way("fallocate-punch", "modified", "fallocate -p -o 4k -l 8k d/f", needs=("fallocate",)),
    Way(
        "sqlite-update",
        "modified+",
        """$PYTHON -c 'import sqlite3; c = sqlite3.connect("d/f")
c.execute("UPDATE t SET x = 2"); c.commit(); c.close()'""",
        size=8192,
        before="""rm d/f; $PYTHON -c 'import sqlite3; c = sqlite3.connect("d/f")
c.executescript("PRAGMA page_size=4096; CREATE TABLE t (x); INSERT INTO t VALUES (1);")'""",
    ),
    Way(
        "sqlite-vacuum",
        "modified* truncated modified*",
        """$PYTHON -c 'import sqlite3; c = sqlite3.connect("d/f"); c.execute("VACUUM")'""",
        size=8192,
        before="""rm d/f; $PYTHON -c 'import sqlite3; c = sqlite3.connect("d/f")
c.executescript("PRAGMA page_size=4096; CREATE TABLE t (x);" +
"INSERT INTO t VALUES (zeroblob(99999)); DELETE FROM t;")'""",
    ),
    Way(
        "mmap-stores",
        "modified+",
        """$PYTHON -c 'import mmap
with open("d/f", "r+b") as f, mmap.mmap(f.fileno(), 0) as m: m[5] = 0'""",
        silent=True,
    ),
    Way(
        "written-by-another-name",
        "modified+",
        "dd if=same of=elsewhere/g bs=4k conv=notrunc status=none",
        before="mkdir elsewhere; ln d/f elsewhere/g",
        silent=True,
    ),
]

ATTRIBUTES = [
    Way("touch", "modified", "touch d/f"),
    Way("touch-date", "modified", "touch -d 1999-12-31 d/f"),
    Way("touch-access", "changed", "touch -a d/f", silent=True),
    Way("chmod", "metadata", "chmod 600 d/f"),
    Way("chown", "metadata", "chown 12345:12345 d/f", root=True),
    Way("setfattr", "changed", "setfattr -n user.name -v value d/f", needs=("setfattr",)),
    Way("hard-link", "metadata", "ln d/f d/g", silent=True),
]

ANOTHER_FILE = [
    Way("mv", "replaced", "mv long d/f", size=LONG, same=False),
    Way(
        "mv-across-file-systems",
        MADE,
        "mv tmpfs/long d/f",
        size=LONG,
        same=False,
        before="mkdir tmpfs; mount -t tmpfs none tmpfs; cp long tmpfs",
        after="umount -l tmpfs",
        root=True,
    ),
    Way("mv-shorter", "replaced", "mv short d/f", size=SHORT, same=False),
    Way("mv-as-long", "replaced", "mv same d/f", same=False),
    Way("cp-remove", MADE, "cp -p --remove-destination long d/f", size=LONG, same=False),
    Way("install", MADE, "install -m 644 long d/f", size=LONG, same=False),
    Way(
        "rsync",
        "replaced (metadata | changed)*",
        "rsync -a long d/f",
        LONG,
        same=False,
        needs=("rsync",),
    ),
    Way("sed-i", REPLACED, "sed -i 's/^/x/' d/f", SIZE + LINES, same=False),
    Way(
        "perl-i",
        MADE,
        "perl -pi -e 's/^/x/' d/f",
        size=SIZE + LINES,
        same=False,
        needs=("perl",),
    ),
    Way(
        "patch",
        MADE,
        "patch -s d/f difference",
        size=SIZE + 1,
        same=False,
        before="sed '1s/^/x/' d/f > wanted; diff -u d/f wanted > difference || true",
        needs=("patch", "diff"),
    ),
    Way(
        "vim-backupcopy-no",
        MADE,
        "vim -u NONE -i NONE -es +'set backup backupskip= backupcopy=no' +'%s/^/x/' +wq d/f",
        size=SIZE + LINES,
        same=False,
        needs=("vim",),
    ),
    Way(  # the steps of vim, for machines without it
        "rename-to-backup-and-write",
        MADE,
        "mv d/f d/f~; cat long > d/f; chmod 640 d/f; rm d/f~",
        size=LONG,
        same=False,
    ),
    Way(
        "logrotate-create",
        MADE,
        'logrotate -f -s "$PWD/rotated" rotation',
        size=0,
        same=False,
        before='echo "\\"$PWD/d/f\\" { rotate 2\n create 640\n }" > rotation',
        needs=("logrotate",),
    ),
    Way(
        "python-os-replace",
        "replaced",
        """$PYTHON -c 'import os, tempfile
with tempfile.NamedTemporaryFile(dir="d", delete=False) as f: f.write(bytes(5))
os.replace(f.name, "d/f")'""",
        size=5,
        same=False,
    ),
    Way(
        "exchange",
        "replaced",
        """$PYTHON -c 'import ctypes
assert not ctypes.CDLL(None).renameat2(-100, b"long", -100, b"d/f", 2), "not supported"'""",
        size=LONG,
        same=False,
    ),
    Way(
        "git-checkout",
        MADE,
        "git -C d checkout -q HEAD~1",
        size=LONG,
        same=False,
        before="cp d/f old; cd d; git init -q .; cp ../long f; git add f; git commit -q -m one;"
        "cp ../old f; git commit -q -a -m two",
        needs=("git",),
    ),
    Way(
        "tar",
        MADE,
        "tar -xf t",
        LONG,
        same=False,
        before="cp -r d e; cp long d/f; tar -cf t d/f;cp e/f d/f",
    ),
    Way(
        "tar-overwrite",
        REWRITTEN,
        "tar -xf t --overwrite",
        size=LONG,
        before="cp -r d e; cp long d/f; tar -cf t d/f; cp e/f d/f",
    ),
    Way("remove-and-make", MADE, "rm d/f; echo anew > d/f", size=5, same=False),
    Way(
        "bind-mount-over-the-file",
        "replaced",
        "mount --bind long d/f",
        size=LONG,
        same=False,
        after="umount -l d/f",
        root=True,
        silent=True,
    ),
    Way(
        "kubernetes-data-swap",
        "replaced",
        "mkdir d/..2; cp long d/..2/f; ln -s ..2 d/..data_tmp; mv -T d/..data_tmp d/..data;"
        "rm -r d/..1",
        size=LONG,
        same=False,
        before="mkdir d/..1; mv d/f d/..1; ln -s ..1 d/..data; ln -s ..data/f d/f",
    ),
    Way(
        "ln-sf",
        MOVED,
        "ln -sf ../long d/f",
        size=LONG,
        same=False,
        before="cp d/f first; ln -sf ../first d/f",
    ),
]

NO_FILE = [
    Way("rm", "removed", "rm d/f", size=None),
    Way("mv-away", "removed", "mv d/f d/g", size=None),
    Way("gzip", "removed", "gzip d/f", size=None, needs=("gzip",)),
    Way(
        "shred",
        "(modified | metadata | changed | grown)* truncated? removed",
        "shred -n 1 -u d/f",
        None,
        needs=("shred",),
    ),
]

DIRECTORIES = [
    Way("directory-renamed", "removed", "mv d away", size=None),
    Way(
        "another-directory-in-its-place",
        MADE,
        "mv d away; mkdir d; cp long d/f",
        size=LONG,
        same=False,
    ),
    Way("directory-removed", "removed", "rm -r d", size=None),
    Way(
        "directory-removed-and-made",
        MADE,
        "rm -r d; mkdir d; cp long d/f",
        size=LONG,
        same=False,
    ),
    Way(
        "file-system-mounted-over-the-directory",
        "removed",
        "mount -t tmpfs none d",
        size=None,
        after="umount -l d",
        root=True,
        silent=True,
    ),
    Way(
        "file-system-unmounted-from-the-directory",
        "(replaced | removed created)",
        "umount -l d",
        size=SIZE,
        same=False,
        before="mount -t tmpfs none d; cp short d/f",
        after="umount -l d || true",
        root=True,
    ),
]

WAYS = [*IN_PLACE, *ATTRIBUTES, *ANOTHER_FILE, *NO_FILE, *DIRECTORIES]
