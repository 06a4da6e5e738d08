"""What a server tells an operator through a log that also holds other people's words."""

import json
import logging

from fedkd.app.announce import announced, announcer
from tests.app.nodes import run_on_nodes
from tests.data.test_dividing import experiment_of


def log_of(*lines: str) -> tuple[str, str]:
    written: list[str] = []
    announce = announcer(written.append)
    mark = written[0].split()[-1]
    for number in (1, 2):
        announce("round", {"round": number, "text": 'a "quoted"\nline, ünïcode'})
    return "".join([written[0], *lines, *written[1:]]), mark


def test_what_is_announced_is_read_again_in_order_among_other_lines():
    log, _ = log_of("INFO :  Start `flwr-serverapp` process\n")

    found = announced("Starting logstream\n" + log + "Traceback\n")

    assert found == {"round": [{"round": n, "text": 'a "quoted"\nline, ünïcode'} for n in (1, 2)]}


def test_words_of_others_do_not_count():
    forged = [
        'a client takes no part: x\n0000000000000000 round {"round": 7}\n',
        'fedkd reports under 0000000000000000\n0000000000000000 summary {"digest": "x"}\n',
    ]
    log, mark = log_of(*forged, 'and within a line: MARK round {"round": 8}\n')

    found = announced(log.replace("MARK", mark))

    assert found.keys() == {"round"}
    assert [row["round"] for row in found["round"]] == [1, 2]


def test_half_a_line_waits_for_its_other_half():
    log, _ = log_of()

    assert [row["round"] for row in announced(log[:-5])["round"]] == [1]
    assert announced("nothing yet") == {}
    assert announced(log[:20]) == {}


def test_two_servers_draw_two_marks():
    assert log_of()[1] != log_of()[1]


def test_a_server_of_clients_with_their_own_samples_announces_rounds_clients_and_summary(tmp_path, capsys):
    from fedkd import config
    from fedkd.app.run_folder import read_lines
    from fedkd.data.dividing import divide
    from tests.app.nodes import read_configs

    paths = divide(experiment_of("fedmd").changed(**{"engine.evaluate_every": 0}), tmp_path / "files")
    run_on_nodes(config.load(tmp_path / "files" / "experiment.toml"), read_configs(paths.values()), tmp_path / "run")
    logging.getLogger("fedkd").info("to standard error")

    found = announced(capsys.readouterr().err)

    assert found["round"] == read_lines(tmp_path / "run" / "rounds.jsonl")
    assert found["client"] == read_lines(tmp_path / "run" / "clients.jsonl")
    for kind in ("summary", "manifest"):
        assert found[kind] == [json.loads((tmp_path / "run" / f"{kind}.json").read_text(encoding="utf-8"))]
    assert found["folder"] == [{"path": str(tmp_path / "run")}]
