<?php
declare(strict_types=1);

namespace Olio;

/**
 * The database. A worker keeps its connection between requests; one that broke (the database was restarted, or a guest moved
 * and the network dropped it) is opened anew: before a request always, within a request for statements outside a transaction.
 */
final class Db
{
    private const LOST = [2006, 2013, 1927, 4031];
    private const DEADLOCK = [1213, 1205];

    private static ?\mysqli $link = null;
    private static bool $inTransaction = false;
    private static int $inserted = 0;
    private static int $changed = 0;

    /** @param list<int|string|null> $values */
    public static function run(string $sql, array $values = []): \mysqli_result|bool
    {
        try {
            return self::execute($sql, $values);
        } catch (\mysqli_sql_exception $error) {
            if (self::$inTransaction || !in_array($error->getCode(), self::LOST, true)) {
                throw $error;
            }
            self::close();
            return self::execute($sql, $values);
        }
    }

    /**
     * @param list<int|string|null> $values
     * @return list<array<string, mixed>>
     */
    public static function rows(string $sql, array $values = []): array
    {
        return self::run($sql, $values)->fetch_all(MYSQLI_ASSOC);
    }

    /**
     * @param list<int|string|null> $values
     * @return array<string, mixed>|null
     */
    public static function row(string $sql, array $values = []): ?array
    {
        return self::run($sql, $values)->fetch_assoc() ?: null;
    }

    /** @param list<int|string|null> $values */
    public static function number(string $sql, array $values = []): int
    {
        return (int) (self::run($sql, $values)->fetch_row()[0] ?? 0);
    }

    /** @param list<int|string|null> $values */
    public static function insert(string $sql, array $values): int
    {
        self::run($sql, $values);
        return self::$inserted;
    }

    public static function changedRows(): int
    {
        return self::$changed;
    }

    /** Run in one transaction; repeated when the database chose it as the victim of a deadlock. */
    public static function transaction(callable $work): mixed
    {
        for ($attempt = 1;; $attempt++) {
            try {
                self::run('START TRANSACTION');
                self::$inTransaction = true;
                $result = $work();
                self::link()->commit();
                return $result;
            } catch (\Throwable $error) {
                self::rollback();
                $again = $error instanceof \mysqli_sql_exception && in_array($error->getCode(), self::DEADLOCK, true);
                if (!$again || $attempt === 3) {
                    throw $error;
                }
            } finally {
                self::$inTransaction = false;
            }
        }
    }

    /**
     * Not by execute_query: with PHP 8.4, after a statement that the server refused, it ends the worker at one of its next requests
     * on the kept connection ("munmap_chunk(): invalid pointer").
     *
     * @param list<int|string|null> $values
     */
    private static function execute(string $sql, array $values): \mysqli_result|bool
    {
        if ($values === []) {
            $done = self::link();
            $result = $done->query($sql);
        } else {
            $done = self::link()->prepare($sql);
            $done->execute($values);
            $result = $done->get_result() ?: true;
        }
        [self::$inserted, self::$changed] = [(int) $done->insert_id, (int) $done->affected_rows];
        return $result;
    }

    private static function link(): \mysqli
    {
        if (self::$link === null) {
            mysqli_report(MYSQLI_REPORT_ERROR | MYSQLI_REPORT_STRICT);
            $link = mysqli_init();
            $link->options(MYSQLI_OPT_CONNECT_TIMEOUT, 10);
            $link->options(MYSQLI_OPT_INT_AND_FLOAT_NATIVE, true);
            $link->real_connect('p:' . Config::dbHost(), 'olio', Config::dbPassword(), 'olio');
            self::$link = $link;
        }
        return self::$link;
    }

    private static function close(): void
    {
        try {
            self::$link?->close();
        } catch (\Throwable) {
            // It was broken already.
        }
        self::$link = null;
    }

    private static function rollback(): void
    {
        try {
            self::$link?->rollback();
        } catch (\Throwable) {
            self::close();
        }
    }
}
