"""Rows of results, as `protocol.record` reads them: which measure the same thing, which are the newest, which became slower."""

from resnet_fused.commands.arguments import UsageError

SLOWER = 0.03
KEY = ("suite", "mode", "model", "op", "direction", "case", "batch", "size", "dtype", "candidate")


def key(row):
    """What makes two rows measurements of the same thing on the same device."""
    return (row["environment"]["device"], *(row.get(k) for k in KEY))


def newest(rows):
    """{key: row}, the last of each; `rows` are oldest first."""
    return {key(row): row for row in rows if "candidate" in row}


def of_commit(rows, commit):
    """Rows that were measured at `commit` (a prefix of the commit or of the hash of the files)."""
    found = [
        row
        for row in rows
        if any(str(row["environment"].get(name) or "").startswith(commit) for name in ("commit", "tree"))
    ]
    if not found:
        raise UsageError(f"--against: no results of {commit!r}")
    return found


def slower(before, after):
    """[(row before, row after)] where even the fast rounds now take over 3 % more than the slow rounds did."""
    return [
        (before[k], row)
        for k, row in after.items()
        if k in before and "median" in row and "median" in before[k]
        and before[k]["run"] < row["run"]
        and row["p20"] > (1 + SLOWER) * before[k]["p80"]
    ]  # fmt: skip


def grouped(rows, *keys):
    """{values of `keys`: rows}; the key "device" is the device's name."""
    groups = {}
    for row in rows:
        groups.setdefault(
            tuple(row["environment"]["device"] if k == "device" else row.get(k) for k in keys), []
        ).append(row)
    return groups
