"""Clients of a database, run on the head: eight move money between accounts all the time, one leaves a transaction open when told to.

Standard input is orders, a line each: ``open`` (begin, insert, do not commit), ``commit``; each is answered by a line of JSON. At the
end of input all stop and the books are checked. The client is the little of the MySQL protocol that this needs.
"""

import hashlib
import json
import random
import socket
import struct
import sys
import threading
import time

ACCOUNTS, CLIENTS, MONEY = 20, 8, 1000
PASSWORD, USER, DATABASE = b"olio", b"olio", b"olio"
CAPABILITIES = 0x200 | 0x8000 | 0x8 | 0x80000 | 0x2000  # protocol 4.1, salted passwords, a database, named plugins, transactions


class Connection:
    """One connection; an error packet or a lost connection raises."""

    def __init__(self, address):
        self.socket = socket.create_connection((address, 3306), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")
        greeting = self.packet()
        at = greeting.index(b"\0", 1) + 5
        salt = greeting[at : at + 8] + greeting[at + 27 : at + 39]
        first = hashlib.sha1(PASSWORD).digest()
        mask = hashlib.sha1(salt + hashlib.sha1(first).digest()).digest()
        proof = bytes(a ^ b for a, b in zip(first, mask, strict=True))
        answer = struct.pack("<IIB23x", CAPABILITIES, 1 << 24, 45) + USER + b"\0" + bytes([20]) + proof + DATABASE + b"\0"
        self.send(answer + b"mysql_native_password\0", 1)
        self.check(self.packet())

    def send(self, payload, number=0):
        self.socket.sendall(struct.pack("<I", len(payload))[:3] + bytes([number]) + payload)

    def packet(self):
        header = self.file.read(4)
        if len(header) < 4:
            raise ConnectionError("the server closed the connection")
        return self.file.read(int.from_bytes(header[:3], "little"))

    @staticmethod
    def check(packet):
        if packet[0] == 0xFF:
            raise RuntimeError(packet[3:].decode(errors="replace"))
        return packet

    def query(self, text):
        """Rows of strings; an empty list for a statement without result."""
        self.send(b"\x03" + text.encode())
        packet = self.check(self.packet())
        if packet[0] == 0:
            return []
        while self.packet()[0] != 0xFE:  # columns
            pass
        rows = []
        while (packet := self.check(self.packet()))[0] != 0xFE:
            row, at = [], 0
            while at < len(packet):
                row.append(packet[at + 1 : at + 1 + packet[at]].decode())
                at += 1 + packet[at]
            rows.append(row)
        return rows


class Client(threading.Thread):
    """Transfers, each a transaction with a row in the journal; sees the same total at every look."""

    def __init__(self, address, number, stop):
        super().__init__(daemon=True)
        self.connection, self.number, self.stop = Connection(address), number, stop
        self.transfers, self.error = 0, ""

    def run(self):
        chance = random.Random(self.number)
        try:
            while not self.stop.is_set():
                self.transfer(*sorted(chance.sample(range(ACCOUNTS), 2)), chance.randint(-50, 50))
                if self.transfers % 10 == 0:
                    total = self.connection.query("SELECT SUM(amount) FROM bank_accounts")[0][0]
                    if int(total) != ACCOUNTS * MONEY:
                        raise ArithmeticError(f"a total of {total}")
        except Exception as error:
            self.error = f"client {self.number}: {error!r}"

    def transfer(self, source, target, amount):
        query = self.connection.query
        query("BEGIN")
        query(f"SELECT amount FROM bank_accounts WHERE id IN ({source}, {target}) ORDER BY id FOR UPDATE")
        query(f"UPDATE bank_accounts SET amount = amount - {amount} WHERE id = {source}")
        query(f"UPDATE bank_accounts SET amount = amount + {amount} WHERE id = {target}")
        query(f"INSERT INTO bank_journal VALUES ({self.number}, {self.transfers})")
        query("COMMIT")
        self.transfers += 1
        time.sleep(0.005)


def main(address):
    control, holder = Connection(address), Connection(address)
    for statement in (
        "CREATE TABLE bank_accounts (id INT PRIMARY KEY, amount INT) ENGINE=InnoDB",
        "CREATE TABLE bank_journal (client INT, number INT, PRIMARY KEY (client, number)) ENGINE=InnoDB",
        "CREATE TABLE bank_open (id INT PRIMARY KEY) ENGINE=InnoDB",
        "INSERT INTO bank_accounts VALUES " + ", ".join(f"({n}, {MONEY})" for n in range(ACCOUNTS)),
    ):
        control.query(statement)
    stop = threading.Event()
    clients = [Client(address, number, stop) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    print(json.dumps("ready"), flush=True)
    opened = 0
    for line in sys.stdin:
        if line.strip() == "open":
            opened += 1
            holder.query("BEGIN")
            holder.query(f"INSERT INTO bank_open VALUES ({opened})")
        else:
            holder.query("COMMIT")
        print(json.dumps({"visible": int(control.query("SELECT COUNT(*) FROM bank_open")[0][0]), "transfers": done(clients)}), flush=True)
    stop.set()
    for client in clients:
        client.join(60)
    print(
        json.dumps(
            {
                "errors": [client.error for client in clients if client.error],
                "transfers": done(clients),
                "journal": int(control.query("SELECT COUNT(*) FROM bank_journal")[0][0]),
                "total": int(control.query("SELECT SUM(amount) FROM bank_accounts")[0][0]),
                "check": [row[-1] for row in control.query("CHECK TABLE bank_accounts, bank_journal, bank_open")],
            }
        )
    )


def done(clients):
    return sum(client.transfers for client in clients)


if __name__ == "__main__":
    main(sys.argv[1])
