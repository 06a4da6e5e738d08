from fedkd.app.history import RoundRecord
from fedkd.progress import RoundProgress


def _record(number: int, **changes: object) -> RoundRecord:
    values = {
        "round": number,
        "seconds": 1.25,
        "participants": {"a": 1},
        "failed": {},
        "bytes_up": {},
        "bytes_down": {},
    }
    return RoundRecord(**{**values, "digest": "0", "metrics": None, **changes})


def test_without_a_terminal_every_round_is_one_line_on_standard_error(capsys):
    metrics = {"clients_global": {"accuracy": 0.714}, "server_global": None}
    with RoundProgress(["fedmd"], 2) as progress:
        progress.advance(_record(1, metrics=metrics))
        progress.advance(_record(2, failed={"client-3": "out of memory"}))
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert "round 1" in first
    assert "clients 71.4 %" in first
    assert second.endswith("fedmd  1 client failed: client-3 (out of memory)")


def test_rounds_that_are_done_already_count(capsys):
    with RoundProgress(["fedmd"], 4, done=3) as progress:
        assert [task.completed for task in progress._progress.tasks] == [3]
        progress.advance(_record(4))
        assert progress._progress.finished
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_several_runs_are_counted_one_after_the_other(capsys):
    with RoundProgress(["local", "fedmd"], 2) as progress:
        for number in (1, 2, 1, 2):
            progress.advance(_record(number))
    lines = capsys.readouterr().err.splitlines()
    assert ["local" in line for line in lines] == [True, True, False, False]
    assert ["fedmd" in line for line in lines] == [False, False, True, True]


def test_of_many_clients_that_failed_the_first_are_named_with_the_last_line_of_why(capsys):
    failed = {f"client-{k}": "Traceback:\n  [file]\nValueError: [odd]" for k in range(5)}
    with RoundProgress(["fedmd"], 2) as progress:
        progress.advance(_record(1, failed=failed))
        progress.advance(_record(2, failed={"client-1": "no reply in time", "client-0": ""}))
    first, second = capsys.readouterr().err.splitlines()
    each = [f"client-{k} (ValueError: [odd])" for k in range(3)]
    assert first == f"round 1  1.2 s  fedmd  5 clients failed: {', '.join(each)} and 2 more"
    assert second == "round 2  1.2 s  fedmd  2 clients failed: client-0 (no reason given), client-1 (no reply in time)"


def test_lines_are_told_between_rounds_as_they_are(capsys):
    with RoundProgress(["fedmd"], 1) as progress:
        progress.tell("takes part: client-0  mlp, image, 554 samples  (node 6194838005630137451) [bold]")
        progress.advance(_record(1))
    told, round_ = capsys.readouterr().err.splitlines()
    assert told == "takes part: client-0  mlp, image, 554 samples  (node 6194838005630137451) [bold]"
    assert round_ == "round 1  1.2 s  fedmd"
