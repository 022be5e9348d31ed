<?php
declare(strict_types=1);

namespace Olio;

/** Events: lists, one event, attendance, and adding one. */
final class Events
{
    private const CARD = 'e.socialeventid, e.title, e.summary, e.imagethumburl, e.eventtimestamp, p.username AS submitter';
    private const FROM = ' FROM SOCIALEVENT e JOIN PERSON p ON p.userid = e.submitter_userid ';
    public const SHOWN_ATTENDEES = 20;

    /**
     * The home page's list, and how many there are in all.
     *
     * @param ?string $day YYYY-MM-DD
     * @return array{list<array<string, mixed>>, int}
     */
    public static function upcoming(?string $day, string $zip, bool $byCreation, int $page): array
    {
        $join = '';
        $values = [];
        if ($day !== null) {
            $where = 'e.disabled = 0 AND e.eventtimestamp >= ? AND e.eventtimestamp < ? + INTERVAL 1 DAY';
            array_push($values, $day, $day);
        } else {
            $where = 'e.disabled = 0 AND e.eventtimestamp >= UTC_TIMESTAMP()';
        }
        if ($zip !== '') {
            $join = 'JOIN ADDRESS a ON a.addressid = e.ADDRESS_addressid ';
            $where .= ' AND a.zip = ?';
            $values[] = $zip;
        }
        $order = $byCreation ? 'e.createdtimestamp DESC' : 'e.eventtimestamp';
        $limit = ' LIMIT ' . Paging::SIZE . ' OFFSET ' . Paging::offset($page);
        $rows = Db::rows('SELECT ' . self::CARD . self::FROM . $join . "WHERE $where ORDER BY $order" . $limit, $values);
        $total = Db::number("SELECT COUNT(*) FROM SOCIALEVENT e $join WHERE $where", $values);
        return [$rows, $total];
    }

    /** @return list<array<string, mixed>> */
    public static function tagged(string $tag, int $page): array
    {
        return Db::rows(
            'SELECT ' . self::CARD . ' FROM SOCIALEVENTTAG t JOIN SOCIALEVENTTAG_SOCIALEVENT ts ON ts.socialeventtagid = t.socialeventtagid '
            . 'JOIN SOCIALEVENT e ON e.socialeventid = ts.socialeventid JOIN PERSON p ON p.userid = e.submitter_userid '
            . 'WHERE t.tag = ? AND e.disabled = 0 ORDER BY ts.socialeventid DESC LIMIT ' . Paging::SIZE . ' OFFSET ' . Paging::offset($page),
            [$tag],
        );
    }

    /** @return list<array<string, mixed>> */
    public static function postedBy(int $userId, int $page): array
    {
        return Db::rows(
            'SELECT ' . self::CARD . self::FROM . 'WHERE e.submitter_userid = ? AND e.disabled = 0 ORDER BY e.createdtimestamp DESC LIMIT '
            . Paging::SIZE . ' OFFSET ' . Paging::offset($page),
            [$userId],
        );
    }

    /** @return list<array<string, mixed>> upcoming ones that a person attends */
    public static function attendedBy(int $userId, int $page): array
    {
        return Db::rows(
            'SELECT ' . self::CARD . ' FROM PERSON_SOCIALEVENT ps JOIN SOCIALEVENT e ON e.socialeventid = ps.socialeventid '
            . 'JOIN PERSON p ON p.userid = e.submitter_userid WHERE ps.userid = ? AND e.disabled = 0 AND e.eventtimestamp >= UTC_TIMESTAMP() '
            . 'ORDER BY e.eventtimestamp LIMIT ' . Paging::SIZE . ' OFFSET ' . Paging::offset($page),
            [$userId],
        );
    }

    /** @return list<array<string, mixed>> */
    public static function newest(): array
    {
        return Db::rows('SELECT ' . self::CARD . ', e.createdtimestamp' . self::FROM . 'WHERE e.disabled = 0 ORDER BY e.createdtimestamp DESC LIMIT 10');
    }

    /** @return array<string, mixed> */
    public static function one(int $id): array
    {
        return Db::row(
            'SELECT e.*, p.username AS submitter, a.street1, a.street2, a.city, a.state, a.zip, a.country, a.latitude, a.longitude' . self::FROM
            . 'JOIN ADDRESS a ON a.addressid = e.ADDRESS_addressid WHERE e.socialeventid = ? AND e.disabled = 0',
            [$id],
        ) ?? throw new HttpError(404, 'There is no such event.');
    }

    /** @return list<string> the first names of the list, the visitor's own first */
    public static function attendees(int $id, ?int $visitor): array
    {
        return array_column(Db::rows(
            'SELECT p.username FROM PERSON_SOCIALEVENT ps JOIN PERSON p ON p.userid = ps.userid WHERE ps.socialeventid = ? '
            . 'ORDER BY ps.userid = ? DESC, ps.userid LIMIT ' . self::SHOWN_ATTENDEES,
            [$id, $visitor ?? 0],
        ), 'username');
    }

    public static function numberOfAttendees(int $id): int
    {
        return Db::number('SELECT COUNT(*) FROM PERSON_SOCIALEVENT WHERE socialeventid = ?', [$id]);
    }

    public static function attend(int $id, int $userId): void
    {
        Db::run(
            'INSERT IGNORE INTO PERSON_SOCIALEVENT (userid, socialeventid) SELECT ?, socialeventid FROM SOCIALEVENT WHERE socialeventid = ?',
            [$userId, $id],
        );
    }

    public static function leave(int $id, int $userId): void
    {
        Db::run('DELETE FROM PERSON_SOCIALEVENT WHERE socialeventid = ? AND userid = ?', [$id, $userId]);
    }

    /**
     * The rows of a new event. Pictures and literature get their names here; their files follow outside the transaction.
     *
     * @param array<string, string> $event
     * @param list<string> $tags
     */
    public static function add(int $userId, array $event, Address $address, array $tags, bool $picture, bool $literature): int
    {
        return Db::transaction(static function () use ($userId, $event, $address, $tags, $picture, $literature): int {
            $id = Db::insert(
                'INSERT INTO SOCIALEVENT (title, summary, description, submitter_userid, ADDRESS_addressid, imageurl, imagethumburl, '
                . "literatureurl, telephone, timezone, eventtimestamp, createdtimestamp) VALUES (?, ?, ?, ?, ?, '', '', '', ?, ?, ?, UTC_TIMESTAMP())",
                [$event['title'], $event['summary'], $event['description'], $userId, $address->insert(), $event['telephone'], $event['timezone'], $event['when']],
            );
            Db::run('UPDATE SOCIALEVENT SET imageurl = ?, imagethumburl = ?, literatureurl = ? WHERE socialeventid = ?', [
                $picture ? "E$id.jpg" : '', $picture ? "E{$id}T.jpg" : '', $literature ? "E{$id}L.pdf" : '', $id,
            ]);
            Tags::attach($id, $tags);
            Db::run('INSERT INTO PERSON_SOCIALEVENT (userid, socialeventid) VALUES (?, ?)', [$userId, $id]);
            return $id;
        });
    }
}
