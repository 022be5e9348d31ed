"""CRIU's command lines, word by word: a change here changes what happens inside the freeze."""

from __future__ import annotations

from pathlib import Path

from emulab.criu import commands

SHARED = (
    "--tcp-established", "--file-locks", "--ghost-limit", "536870912", "--link-remap", "--force-irmap",
    "--empty-ns", "net", "--network-lock", "skip",
    "--manage-cgroups=ignore", "--ext-mount-map", "auto", "--enable-external-masters", "--enable-external-sharing",
)  # fmt: skip
OUT = Path("/run/emulab/out-web-1")
DISTINCT = Path("/run/emulab/in-web-1/distinct-pages")
ROOT = "/var/lib/emulab/guests/web/root"
FREEZER = "/sys/fs/cgroup/freezer/guest-web"


def pre_dump(**changes):
    return commands.pre_dump(
        **{
            "pid": 77,
            "images": OUT / "1",
            "parent": None,
            "rootfs": ROOT,
            "freezer": FREEZER,
            "write_protect": False,
            **changes,
        }
    )


def dump(**changes):
    return commands.dump(
        **{
            "pid": 77,
            "images": OUT / "final",
            "parent": OUT / "2",
            "rootfs": ROOT,
            "freezer": FREEZER,
            "hook_socket": "/run/h.sock",
            "write_protect": False,
            **changes,
        }
    )


def test_the_first_round():
    assert pre_dump().argv == (
        "criu", "pre-dump", "-t", "77", "-D", "/run/emulab/out-web-1/1", "-o", "pre-dump.log", "-v2", "--track-mem", *SHARED,
        "--freeze-cgroup", FREEZER, "--root", ROOT,
    )  # fmt: skip


def test_a_later_round_names_its_parent_relative_to_its_own_folder():
    argv = pre_dump(images=OUT / "2", parent=OUT / "1").argv
    assert argv[argv.index("--track-mem") :][:3] == ("--track-mem", "--prev-images-dir", "../1")


def test_the_final_dump_asks_the_hook_and_has_a_limit():
    call = dump()
    assert call.argv == (
        "criu", "dump", "-t", "77", "-D", "/run/emulab/out-web-1/final", "-o", "dump.log", "-v2", "--track-mem",
        "--prev-images-dir", "../2", *SHARED, "--freeze-cgroup", FREEZER, "--root", ROOT,
        "--action-script", "/usr/local/lib/emulab/hook", "--timeout", "30",
    )  # fmt: skip
    assert call.env["EMULAB_HOOK_SOCKET"] == "/run/h.sock"


def test_without_rounds_before_it_the_final_dump_tracks_nothing():
    argv = dump(parent=None).argv
    assert "--track-mem" not in argv
    assert "--prev-images-dir" not in argv


def test_write_protect_tells_the_shim():
    assert "EMULAB_SHIM_WP" not in pre_dump().env
    assert pre_dump(write_protect=True).env == {**pre_dump().env, "EMULAB_SHIM_WP": "1"}


def test_the_shim_is_told_where_the_tasks_are_listed():
    for call in (pre_dump(), dump()):
        assert call.env["LD_PRELOAD"] == "/usr/local/lib/emulab/shim.so"
        assert call.env["EMULAB_SHIM_TASKS"] == f"{FREEZER}/cgroup.procs"


def test_only_the_final_dump_is_told_to_be_final():
    assert "EMULAB_SHIM_FINAL" in dump().env
    assert "EMULAB_SHIM_FINAL" not in pre_dump().env


def test_the_restore_happens_inside_the_guests_cgroup():
    call = commands.restore(
        images=OUT / "final", rootfs=ROOT, pidfile=OUT / "restored.pid", hook_socket="/run/r.sock",
        join_cgroup="echo $$ > /cg/cgroup.procs", distinct=DISTINCT,
    )  # fmt: skip
    assert call.argv[:4] == ("sh", "-c", 'echo $$ > /cg/cgroup.procs; exec "$@"', "sh")
    assert call.argv[4:] == (
        "env", "LD_PRELOAD=/usr/local/lib/emulab/shim.so", "EMULAB_SHIM_PAGES=/run/emulab/in-web-1/distinct-pages",
        "EMULAB_SHIM_PREMAP=/run/emulab/out-web-1/final",
        "criu", "restore", "-D", "/run/emulab/out-web-1/final", "-o", "restore.log", "-v2", "-d", "--pidfile",
        "/run/emulab/out-web-1/restored.pid", *SHARED, "--root", ROOT, "--action-script", "/usr/local/lib/emulab/hook",
    )  # fmt: skip
    assert call.env == {"EMULAB_HOOK_SOCKET": "/run/r.sock"}


def test_a_lazy_restore_places_nothing_in_advance():
    """CRIU registers what it fills later, and inherits nothing from parents."""
    restored = commands.restore(
        images=OUT, rootfs=ROOT, pidfile=OUT / "p", hook_socket="s", join_cgroup=":", distinct=DISTINCT, lazy=True
    ).argv
    assert "--lazy-pages" in restored
    assert not any(word.startswith("EMULAB_SHIM_PREMAP") for word in restored)
    plain = commands.restore(
        images=OUT, rootfs=ROOT, pidfile=OUT / "p", hook_socket="s", join_cgroup=":", distinct=DISTINCT, in_place=False
    ).argv
    assert not any(word.startswith("EMULAB_SHIM_PREMAP") for word in plain)


def test_dump_and_restore_agree_on_how_the_guest_is_seen():
    """Mounts, network and locks must be treated alike on both sides, or a restore fails behind the commit's back."""
    restored = commands.restore(images=OUT, rootfs=ROOT, pidfile=OUT / "p", hook_socket="s", join_cgroup=":", distinct=DISTINCT).argv
    for word in SHARED:
        assert word in dump().argv
        assert word in restored


def test_paths_of_watched_files_are_given_in_their_order():
    call = commands.dump(
        pid=77, images=OUT, parent=None, rootfs=ROOT, freezer="/f", hook_socket="s", write_protect=False, watched=["/etc/a", "/etc"]
    )
    at = call.argv.index("--irmap-scan-path")
    assert call.argv[at : at + 4] == ("--irmap-scan-path", "/etc/a", "--irmap-scan-path", "/etc")


def test_a_lazy_dump_leaves_pages_out_and_has_nobody_to_serve_them_to():
    call = dump(lazy=9)
    at = call.argv.index("--lazy-pages")
    assert call.argv[at : at + 3] == ("--lazy-pages", "--ps-socket", "9")
    assert call.descriptors == (9,)
    assert "--lazy-pages" not in dump().argv
    assert dump().descriptors == ()


def test_a_lazy_restore_hands_its_descriptors_over_in_the_image_folder():
    call = commands.restore(
        images=OUT / "final", rootfs=ROOT, pidfile=OUT / "p", hook_socket="s", join_cgroup=":", distinct=DISTINCT, lazy=True
    )
    at = call.argv.index("--lazy-pages")
    assert call.argv[at : at + 3] == ("--lazy-pages", "-W", "/run/emulab/out-web-1/final")
