"""The data set: sizes as in Olio's ScaleFactors, one stream of bytes per (users, ratio, seed), and rows that fit together."""

import hashlib
import json
import re
import sqlite3
import statistics
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.olio.loader import Counts, counts, generate
from workloads.olio.loader.passwords import hashed
from workloads.olio.loader.sql import inserts, quoted


@pytest.mark.parametrize(
    ("users", "ratio", "registered", "tags", "events"),
    [
        (25, 100, 2_500, 622, 1_866),
        (100, 100, 10_000, 2_311, 6_933),
        (200, 100, 20_000, 3_808, 11_424),
        (300, 100, 30_000, 4_526, 13_578),
        (400, 100, 40_000, 4_820, 14_460),
        (500, 100, 50_000, 4_933, 14_799),
        (600, 100, 60_000, 4_975, 14_925),
        (25, 10, 250, 62, 186),
        (100, 10, 1_000, 250, 750),
        (600, 10, 6_000, 1_457, 4_371),
    ],
)
def test_counts_follow_the_table(users, ratio, registered, tags, events):
    assert counts(users, ratio) == Counts(registered, tags, events)


def test_fewer_than_25_users_are_loaded_as_25():
    assert counts(3, 10) == counts(25, 10)


@pytest.mark.parametrize(("users", "ratio"), [(0, 10), (10, 0), (-1, 1)])
def test_nonsense_is_refused(users, ratio):
    with pytest.raises(ValueError, match="at least 1"):
        counts(users, ratio)


def digest(users, ratio, seed):
    sha = hashlib.sha256()
    for chunk in generate(users, ratio, seed):
        sha.update(chunk)
    return sha.hexdigest()


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others():
    first = digest(25, 4, 1)
    assert digest(25, 4, 1) == first
    assert digest(25, 4, 2) != first


def test_the_command_writes_what_the_function_yields(tmp_path):
    target = tmp_path / "data.sql"
    command = [sys.executable, "-m", "workloads.olio.loader", "--users", "25", "--ratio", "4", "--seed", "7"]
    subprocess.run([*command, "--output", str(target)], check=True)
    assert target.read_bytes() == b"".join(generate(25, 4, 7))
    assert subprocess.run(command, check=True, capture_output=True).stdout == target.read_bytes()
    summary = json.loads(subprocess.run([*command, "--summary"], check=True, capture_output=True).stdout)
    assert summary == {"registered_users": 100, "tags": 25, "events": 75}


@pytest.fixture(scope="module")
def rows():
    """The generated rows in SQLite: tables are made from the column lists, times are minutes relative to the day of loading."""
    base = sqlite3.connect(":memory:")
    made = set()
    for chunk in generate(40, 10, 3):
        text = chunk.decode()
        if not text.startswith("INSERT INTO "):
            continue
        table, columns = re.match(r"INSERT INTO (\w+) \(([^)]*)\)", text).groups()
        if table not in made:
            made.add(table)
            base.execute(f"CREATE TABLE {table} ({columns})")
        base.execute(re.sub(r"@base([+-])INTERVAL (\d+) MINUTE", r"\g<1>\2", text))
    yield base
    base.close()


def column(rows, sql):
    return [row[0] for row in rows.execute(sql)]


def test_every_table_has_its_rows(rows):
    size = counts(40, 10)
    for table, wanted in (("PERSON", 400), ("ADDRESS", 400), ("SOCIALEVENT", size.events), ("SOCIALEVENTTAG", size.tags)):
        assert column(rows, f"SELECT COUNT(*) FROM {table}") == [wanted]


@pytest.mark.parametrize(
    ("table", "key", "parent", "parent_key"),
    [
        ("PERSON", "ADDRESS_addressid", "ADDRESS", "addressid"),
        ("SOCIALEVENT", "ADDRESS_addressid", "ADDRESS", "addressid"),
        ("SOCIALEVENT", "submitter_userid", "PERSON", "userid"),
        ("PERSON_PERSON", "person_userid", "PERSON", "userid"),
        ("PERSON_PERSON", "friend_userid", "PERSON", "userid"),
        ("PERSON_SOCIALEVENT", "userid", "PERSON", "userid"),
        ("PERSON_SOCIALEVENT", "socialeventid", "SOCIALEVENT", "socialeventid"),
        ("SOCIALEVENTTAG_SOCIALEVENT", "socialeventid", "SOCIALEVENT", "socialeventid"),
        ("SOCIALEVENTTAG_SOCIALEVENT", "socialeventtagid", "SOCIALEVENTTAG", "socialeventtagid"),
        ("COMMENTS_RATING", "userid", "PERSON", "userid"),
        ("COMMENTS_RATING", "socialeventid", "SOCIALEVENT", "socialeventid"),
    ],
)
def test_every_reference_has_its_target(rows, table, key, parent, parent_key):
    assert column(rows, f"SELECT COUNT(*) FROM {table} WHERE {key} NOT IN (SELECT {parent_key} FROM {parent})") == [0]


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("PERSON", "username"),
        ("PERSON_PERSON", "person_userid || '-' || friend_userid"),
        ("PERSON_SOCIALEVENT", "userid || '-' || socialeventid"),
        ("SOCIALEVENTTAG_SOCIALEVENT", "socialeventtagid || '-' || socialeventid"),
        ("SOCIALEVENTTAG", "tag"),
    ],
)
def test_unique_keys_are_unique(rows, table, key):
    assert column(rows, f"SELECT COUNT(*) - COUNT(DISTINCT {key}) FROM {table}") == [0]


@pytest.mark.parametrize(
    ("what", "sql", "low", "high", "mean"),
    [
        ("friends", "SELECT COUNT(*) FROM PERSON_PERSON GROUP BY person_userid", 2, 28, 15),
        ("attendees", "SELECT COUNT(*) FROM PERSON_SOCIALEVENT GROUP BY socialeventid", 10, 100, 55),
        ("tags", "SELECT COUNT(*) FROM SOCIALEVENTTAG_SOCIALEVENT GROUP BY socialeventid", 1, 7, 4),
        ("ratings", "SELECT ratings FROM COMMENTS_RATING", 2, 5, 3.5),
        ("comment length", "SELECT LENGTH(comments) FROM COMMENTS_RATING", 10, 1000, 505),
        ("summary length", "SELECT LENGTH(summary) FROM PERSON", 250, 2500, 1375),
        ("description length", "SELECT LENGTH(description) FROM SOCIALEVENT", 50, 495, 272),
        ("minutes ahead", "SELECT eventtimestamp FROM SOCIALEVENT", 7 * 60, 541 * 1440, 270.6 * 1440),
        ("hour", "SELECT eventtimestamp % 1440 / 60 FROM SOCIALEVENT", 7, 21, 14),
        ("minutes since", "SELECT -created_at FROM COMMENTS_RATING", 0, 540 * 1440, 270 * 1440),
    ],
)
def test_distributions(rows, what, sql, low, high, mean):
    values = column(rows, sql)
    assert min(values) >= low
    assert max(values) <= high
    spread = (high - low) / 12**0.5  # of a uniform distribution
    assert abs(statistics.fmean(values) - mean) < 5 * spread / len(values) ** 0.5, what


def test_comments_are_0_to_20_per_event(rows):
    numbers = column(
        rows,
        "SELECT COUNT(c.socialeventid) FROM SOCIALEVENT e LEFT JOIN COMMENTS_RATING c ON c.socialeventid = e.socialeventid "
        "GROUP BY e.socialeventid",
    )
    assert min(numbers) == 0
    assert max(numbers) == 20
    assert 9 < statistics.fmean(numbers) < 11


def test_nobody_is_their_own_friend_and_half_of_the_friends_are_accepted(rows):
    assert column(rows, "SELECT COUNT(*) FROM PERSON_PERSON WHERE person_userid = friend_userid") == [0]
    accepted, pending = column(rows, "SELECT COUNT(*) FROM PERSON_PERSON GROUP BY is_accepted ORDER BY is_accepted DESC")
    assert 0 <= pending - accepted <= 400  # an odd number starts and ends with a pending one


def test_popularity_of_tags_falls_off_exponentially(rows):
    tags = counts(40, 10).tags
    shares = [
        column(rows, f"SELECT COUNT(*) FROM SOCIALEVENTTAG_SOCIALEVENT WHERE socialeventtagid BETWEEN {low} AND {high}")[0]
        for low, high in ((1, tags // 10), (tags // 10 + 1, tags // 5), (tags // 5 + 1, tags // 10 * 3), (tags // 2 + 1, tags))
    ]
    assert shares[0] > shares[1] > shares[2] > shares[3]
    assert shares[0] > 0.4 * sum(shares)
    assert shares[3] < 0.05 * sum(shares)


def test_names_and_passwords_can_be_derived_from_the_number(rows):
    for number, name, stored in rows.execute("SELECT userid, username, password FROM PERSON WHERE userid IN (1, 17, 400)"):
        assert name == f"user{number}"
        scheme, iterations, salt, digest = stored.split("$")
        assert scheme == "pbkdf2-sha256"
        assert digest == hashlib.pbkdf2_hmac("sha256", str(number).encode(), bytes.fromhex(salt), int(iterations)).hex()
    assert column(rows, "SELECT tag FROM SOCIALEVENTTAG WHERE socialeventtagid = 9") == ["tag9"]


def test_salts_differ(rows):
    stored = column(rows, "SELECT password FROM PERSON")
    assert len({text.split("$")[2] for text in stored}) == len(stored)
    assert hashed("x", b"a") != hashed("x", b"b")


def test_a_tiny_world_ends_and_is_consistent():
    text = b"".join(generate(1, 1, 1)).decode()
    assert text.count("\n(") > 100


@given(st.text(st.characters(exclude_characters="\\\0", exclude_categories=("Cs",))))
def test_quoted_text_comes_back(text):
    assert sqlite3.connect(":memory:").execute(f"SELECT {quoted(text)}").fetchone()[0] == text


def test_backslashes_are_escaped_for_mariadb():
    assert quoted("a\\'") == "'a\\\\'''"


def test_rows_are_split_into_statements_of_bounded_size():
    statements = list(inserts("T (a)", (f"'{'x' * 999}'" for _ in range(2000))))
    assert len(statements) > 1
    assert max(map(len, statements)) < 600_000
    assert sum(statement.count(b"'x") for statement in statements) == 2000
