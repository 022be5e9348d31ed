<?php
declare(strict_types=1);

namespace Olio;

/** Stored passwords: pbkdf2-sha256$iterations$salt$hash, as the loader writes them (few iterations: see loader/passwords.py). */
final class Passwords
{
    private const ITERATIONS = 64;

    public static function hash(string $password): string
    {
        $salt = random_bytes(8);
        return implode('$', ['pbkdf2-sha256', self::ITERATIONS, bin2hex($salt), self::digest($password, $salt, self::ITERATIONS)]);
    }

    public static function verify(string $password, string $stored): bool
    {
        $parts = explode('$', $stored);
        return count($parts) === 4 && $parts[0] === 'pbkdf2-sha256'
            && hash_equals($parts[3], self::digest($password, (string) hex2bin($parts[2]), (int) $parts[1]));
    }

    private static function digest(string $password, string $salt, int $iterations): string
    {
        return hash_pbkdf2('sha256', $password, $salt, $iterations);
    }
}
