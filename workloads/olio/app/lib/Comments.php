<?php
declare(strict_types=1);

namespace Olio;

/** Comments and the ratings that come with them. */
final class Comments
{
    /** @return list<array<string, mixed>> */
    public static function ofEvent(int $event): array
    {
        return Db::rows(
            'SELECT c.commentid, c.userid, c.comments, c.ratings, c.created_at, p.username FROM COMMENTS_RATING c '
            . 'JOIN PERSON p ON p.userid = c.userid WHERE c.socialeventid = ? ORDER BY c.commentid LIMIT 100',
            [$event],
        );
    }

    public static function add(int $event, int $userId, string $text, int $rating): void
    {
        Db::transaction(static function () use ($event, $userId, $text, $rating): void {
            Db::run(
                'UPDATE SOCIALEVENT SET totalscore = totalscore + ?, numberofvotes = numberofvotes + 1 WHERE socialeventid = ?',
                [$rating, $event],
            );
            if (Db::changedRows() !== 1) {
                throw new HttpError(404, 'There is no such event.');
            }
            Db::insert(
                'INSERT INTO COMMENTS_RATING (userid, socialeventid, comments, ratings, created_at) VALUES (?, ?, ?, ?, UTC_TIMESTAMP())',
                [$userId, $event, $text, $rating],
            );
        });
    }

    /** Remove one's own comment; returns its event. */
    public static function delete(int $comment, int $userId): int
    {
        return Db::transaction(static function () use ($comment, $userId): int {
            $row = Db::row('SELECT socialeventid, ratings FROM COMMENTS_RATING WHERE commentid = ? AND userid = ? FOR UPDATE', [$comment, $userId])
                ?? throw new HttpError(404, 'You have no such comment.');
            Db::run('DELETE FROM COMMENTS_RATING WHERE commentid = ?', [$comment]);
            Db::run(
                'UPDATE SOCIALEVENT SET totalscore = totalscore - ?, numberofvotes = numberofvotes - 1 WHERE socialeventid = ?',
                [$row['ratings'], $row['socialeventid']],
            );
            return $row['socialeventid'];
        });
    }
}
