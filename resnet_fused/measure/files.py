"""Files of the cache folder, which several processes read and write."""

import contextlib
import json
import os
import tempfile


def replace(path, content):
    """Writes a JSON file so that readers see the old content or the new, never a part."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with os.fdopen(handle, "w") as f:
            json.dump(content, f, indent=1)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


@contextlib.contextmanager
def locked(path):
    """Context manager: one process at a time. Raises OSError where the file cannot be written."""
    try:
        import fcntl
    except ImportError:  # not a Unix: a replacement is still atomic, a concurrent writer may win
        yield
        return
    with open(path, "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield
