"""The command line, called in this process."""

from resnet_fused.commands.main import main


def run(capsys, *arguments):
    """(exit status, stdout, stderr)"""
    status = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def check_error(result, message):
    status, out, err = result
    assert status == 2 and out == ""
    assert err.startswith("resnet_fused: error: ") and err.count("\n") == 1 and err.endswith("\n")
    assert message in err
