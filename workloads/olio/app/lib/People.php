<?php
declare(strict_types=1);

namespace Olio;

/** Persons and friendship. */
final class People
{
    public const SHOWN_FRIENDS = 6;
    private const CARD = 'p.userid, p.username, p.firstname, p.lastname, p.imagethumburl';

    /** @return array<string, mixed> */
    public static function one(string $userName): array
    {
        return Db::row(
            'SELECT p.*, a.street1, a.street2, a.city, a.state, a.zip, a.country FROM PERSON p '
            . 'JOIN ADDRESS a ON a.addressid = p.ADDRESS_addressid WHERE p.username = ?',
            [$userName],
        ) ?? throw new HttpError(404, 'There is no such person.');
    }

    public static function id(string $userName): int
    {
        return Db::number('SELECT userid FROM PERSON WHERE username = ?', [$userName]) ?: throw new HttpError(404, 'There is no such person.');
    }

    public static function isTaken(string $userName): bool
    {
        return Db::number('SELECT COUNT(*) FROM PERSON WHERE username = ?', [$userName]) > 0;
    }

    /** @return array{userid: int, username: string}|null */
    public static function authenticate(string $userName, string $password): ?array
    {
        $row = Db::row('SELECT userid, username, password FROM PERSON WHERE username = ?', [$userName]);
        return $row !== null && Passwords::verify($password, $row['password']) ? $row : null;
    }

    /** @return list<array<string, mixed>> */
    public static function friends(int $userId, int $limit, int $offset = 0): array
    {
        return Db::rows(
            'SELECT ' . self::CARD . ' FROM PERSON_PERSON pp JOIN PERSON p ON p.userid = pp.friend_userid '
            . "WHERE pp.person_userid = ? AND pp.is_accepted = 1 ORDER BY pp.friend_userid LIMIT $limit OFFSET $offset",
            [$userId],
        );
    }

    public static function numberOfFriends(int $userId): int
    {
        return Db::number('SELECT COUNT(*) FROM PERSON_PERSON WHERE person_userid = ? AND is_accepted = 1', [$userId]);
    }

    /** @return list<array<string, mixed>> who has invited this person */
    public static function incoming(int $userId): array
    {
        return Db::rows(
            'SELECT ' . self::CARD . ' FROM PERSON_PERSON pp JOIN PERSON p ON p.userid = pp.friend_userid '
            . 'WHERE pp.person_userid = ? AND pp.is_accepted = 0 LIMIT 20',
            [$userId],
        );
    }

    /** @return list<array<string, mixed>> whom this person has invited */
    public static function outgoing(int $userId): array
    {
        return Db::rows(
            'SELECT ' . self::CARD . ' FROM PERSON_PERSON pp JOIN PERSON p ON p.userid = pp.person_userid '
            . 'WHERE pp.friend_userid = ? AND pp.is_accepted = 0 LIMIT 20',
            [$userId],
        );
    }

    /** @return list<array<string, mixed>> by the beginning of the user name */
    public static function search(string $query, int $page): array
    {
        return Db::rows(
            'SELECT ' . self::CARD . ' FROM PERSON p WHERE p.username LIKE ? ORDER BY p.username LIMIT ' . Paging::SIZE
            . ' OFFSET ' . Paging::offset($page),
            [addcslashes($query, '%_\\') . '%'],
        );
    }

    public static function invite(int $from, int $to): void
    {
        if ($from !== $to) {
            Db::run('INSERT IGNORE INTO PERSON_PERSON (person_userid, friend_userid, is_accepted) VALUES (?, ?, 0)', [$to, $from]);
        }
    }

    public static function approve(int $userId, int $from): void
    {
        Db::run('UPDATE PERSON_PERSON SET is_accepted = 1 WHERE person_userid = ? AND friend_userid = ? AND is_accepted = 0', [$userId, $from]);
        if (Db::changedRows() === 1) {
            Db::run(
                'INSERT INTO PERSON_PERSON (person_userid, friend_userid, is_accepted) VALUES (?, ?, 1) ON DUPLICATE KEY UPDATE is_accepted = 1',
                [$from, $userId],
            );
        }
    }

    /** Take an invitation away: the one invited rejects it, or the one who sent it revokes it. */
    public static function dropInvitation(int $invited, int $from): void
    {
        Db::run('DELETE FROM PERSON_PERSON WHERE person_userid = ? AND friend_userid = ? AND is_accepted = 0', [$invited, $from]);
    }

    public static function unfriend(int $a, int $b): void
    {
        Db::run('DELETE FROM PERSON_PERSON WHERE person_userid IN (?, ?) AND friend_userid IN (?, ?) AND is_accepted = 1', [$a, $b, $a, $b]);
    }

    /**
     * The rows of a new person.
     *
     * @param array<string, string> $person
     */
    public static function add(array $person, Address $address, bool $picture): int
    {
        try {
            return Db::transaction(static function () use ($person, $address, $picture): int {
                $id = Db::insert(
                    'INSERT INTO PERSON (username, password, firstname, lastname, email, telephone, imageurl, imagethumburl, summary, timezone, '
                    . "ADDRESS_addressid) VALUES (?, ?, ?, ?, ?, ?, '', '', ?, ?, ?)",
                    [
                        $person['username'], Passwords::hash($person['password']), $person['firstname'], $person['lastname'], $person['email'],
                        $person['telephone'], $person['summary'], $person['timezone'], $address->insert(),
                    ],
                );
                if ($picture) {
                    Db::run('UPDATE PERSON SET imageurl = ?, imagethumburl = ? WHERE userid = ?', ["P$id.jpg", "P{$id}T.jpg", $id]);
                }
                return $id;
            });
        } catch (\mysqli_sql_exception $error) {
            throw $error->getCode() === 1062 ? new HttpError(409, 'This user name is taken.') : $error;
        }
    }
}
