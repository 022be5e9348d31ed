import json

import pytest

from emulab.errors import UsageError
from emulab.load import config as configuration


def test_defaults_and_nested_objects():
    config = configuration.parse({"target": {"host": "198.18.0.100", "port": 80}, "users": 600, "probe": {"interval_s": 0.02}})
    assert (config.target.host, config.users, config.probe.interval_s, config.probe.path) == ("198.18.0.100", 600, 0.02, "/probe.txt")
    assert config.total_s == 160


def test_reads_what_was_written(tmp_path):
    path = tmp_path / "load.json"
    path.write_text(json.dumps({"users": 7, "ramp_up_s": 3, "pacing": "think"}))
    config = configuration.read(path)
    assert (config.users, config.ramp_up_s, config.pacing) == (7, 3.0, "think")


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"user": 5}, "unknown keys.*user"),
        ({"target": {"hosts": "x"}}, r"target\.hosts"),
        ({"users": 0}, "users must be at least 1"),
        ({"users": 1.5}, "whole number"),
        ({"users": True}, "whole number"),
        ({"mean_s": "5s"}, "must be a number"),
        ({"target": "198.18.0.100:80"}, "target must be a JSON object"),
        ({"pacing": "fast"}, "pacing must be one of"),
        ({"profile": "olio-3"}, "profile must be one of"),
        ({"cache_warm": 60}, "from 0 to 1"),
        ({"ramp_up_s": -1, "users": 0}, "users.*ramp_up_s"),
    ],
)
def test_what_makes_no_sense_is_refused(document, words):
    with pytest.raises(UsageError, match=words):
        configuration.parse(document)


def test_a_missing_or_broken_file_is_told(tmp_path):
    with pytest.raises(UsageError, match="cannot read"):
        configuration.read(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UsageError, match="cannot read"):
        configuration.read(tmp_path / "broken.json")
