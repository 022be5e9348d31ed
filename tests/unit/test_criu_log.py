"""The one line of a CRIU log that says why. The excerpts are from real failures, shortened."""

from __future__ import annotations

from emulab.criu.log import deciding_line, read_deciding_line

IO_URING = """\
(00.000017) Warn  (criu/kerndat.c:1229): Can't keep kdat cache on non-tmpfs
(00.013411) Error (criu/tun.c:85): tun: Unable to create tun: No such file or directory
(00.161203) Error (criu/files-ext.c:94): Can't dump file 5 of that type [100600] (unknown anon_inode:[io_uring])
(00.161220) Error (criu/cr-dump.c:1678): Dump files (pid: 2419) failed with -1
(00.161844) Error (criu/cr-dump.c:2098): Dumping FAILED.
"""

RESTORE = """\
(00.003501)      1: Error (criu/rst-malloc.c:12): rlimit: Can't setup RLIMIT_NOFILE for 1: Operation not permitted
(00.031882)      4: Error (criu/sk-inet.c:988): inet: Can't bind inet socket (id 9): Cannot assign requested address
(00.031890)      4: Error (criu/files.c:1213): Unable to open fd=3 id=0x9
(00.032105) Error (criu/cr-restore.c:1480): 11 exited, status=1
(00.040711) Error (criu/cr-restore.c:2397): Restoring FAILED.
"""

PARASITE = "(00.512001) Error (compel/src/lib/infect.c:1651): Can't infect\n(00.512100) Error (criu/cr-dump.c:2098): Pre-dumping FAILED.\n"


def test_the_cause_comes_first_and_not_its_callers():
    assert deciding_line(IO_URING) == "Error (criu/files-ext.c:94): Can't dump file 5 of that type [100600] (unknown anon_inode:[io_uring])"


def test_lines_of_a_restored_task_carry_its_number():
    assert deciding_line(RESTORE).endswith("inet: Can't bind inet socket (id 9): Cannot assign requested address")


def test_the_words_of_failure_alone_are_no_reason():
    assert "Can't infect" in deciding_line(PARASITE)


def test_warnings_do_not_decide():
    text = "(00.1) Warn  (a.c:1): odd\n(00.2) Error (b.c:2): bad\n"
    assert deciding_line(text) == "Error (b.c:2): bad"


def test_without_an_error_the_last_line_is_told():
    assert deciding_line("(00.1) Warn  (a.c:1): odd\n(00.2) Warn  (a.c:2): killed here\n\n") == "(00.2) Warn  (a.c:2): killed here"


def test_only_noise_is_still_better_than_nothing():
    assert deciding_line("(00.9) Error (criu/cr-dump.c:2098): Dumping FAILED.\n") == "(00.9) Error (criu/cr-dump.c:2098): Dumping FAILED."


def test_one_that_was_killed_is_said_to_be(tmp_path):
    log = tmp_path / "restore.log"
    log.write_text("(00.1) 1: Warn  (a.c:1): odd\n(00.2) 1: Error (criu/rst-malloc.c:12): rlimit: Can't setup RLIMIT_NOFILE for 1: no\n")
    assert read_deciding_line(log, -9) == "it was ended by SIGKILL"
    assert read_deciding_line(log, 1) == "(00.1) 1: Warn  (a.c:1): odd"


def test_an_empty_log_and_a_missing_one_are_said_to_be_so(tmp_path):
    assert deciding_line("") == "CRIU left no log"
    assert read_deciding_line(tmp_path / "dump.log") == "CRIU left no log"
    assert read_deciding_line(tmp_path / "dump.log", 1) == "CRIU left no log (exit code 1)"


def test_a_log_cut_off_in_a_character_is_read(tmp_path):
    log = tmp_path / "dump.log"
    log.write_bytes(b"(00.1) Error (a.c:1): caf\xc3")
    assert read_deciding_line(log).startswith("Error (a.c:1): caf")
