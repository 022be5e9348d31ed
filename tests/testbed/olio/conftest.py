"""Both guest images as plain containers with 250 persons, once for all tests of this folder."""

import socket
import sys
import uuid
from pathlib import Path

import docker
import pytest

from workloads.olio.loader import generate

sys.path.insert(0, str(Path(__file__).parent))
from olio_site import LABELS, Browser, start

sys.path.insert(0, str(Path(__file__).parents[2]))
from waiting import wait_until


@pytest.fixture(scope="package")
def client():
    client = docker.from_env()
    for image in ("emulab/olio-web:latest", "emulab/olio-db:latest"):
        if not client.images.list(image):
            pytest.skip(f"image {image} is not built")
    yield client
    client.close()


def clear_away(client):
    """Remove what these tests made, in this run or in one that was killed half way."""
    label = {"label": [f"{key}={value}" for key, value in LABELS.items()]}
    for container in client.containers.list(all=True, filters=label):
        container.remove(force=True, v=True)
    for network in client.networks.list(filters=label):
        network.remove()


@pytest.fixture(scope="package")
def network(client):
    clear_away(client)
    yield client.networks.create(f"emulab-test-{uuid.uuid4().hex[:8]}", internal=True, labels=LABELS)
    clear_away(client)


@pytest.fixture(scope="package")
def site(client, network):
    site = start(client, network)
    stream = site.db.client.api.exec_create(site.db.id, ["mariadb", "olio"], stdin=True)
    pipe = site.db.client.api.exec_start(stream["Id"], socket=True)
    raw = pipe._sock
    for chunk in generate(25, 10, 1):
        raw.sendall(chunk)
    raw.shutdown(socket.SHUT_WR)
    wait_until(lambda: not site.db.client.api.exec_inspect(stream["Id"])["Running"], 60.0)
    assert site.db.client.api.exec_inspect(stream["Id"])["ExitCode"] == 0
    pipe.close()
    return site


@pytest.fixture
def visitor(site):
    browser = Browser(site.address)
    yield browser
    browser.connection.close()


@pytest.fixture
def member(site):
    browser = Browser(site.address)
    browser.login(7)
    yield browser
    browser.connection.close()
