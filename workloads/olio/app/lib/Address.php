<?php
declare(strict_types=1);

namespace Olio;

/** An address, from the fields that two forms share. */
final class Address
{
    private function __construct(
        private readonly string $street1,
        private readonly string $street2,
        private readonly string $city,
        private readonly string $state,
        private readonly string $zip,
        private readonly string $country,
    ) {
    }

    public static function fromForm(): self
    {
        $field = static fn (string $name, int $length): string => Request::short($name, $length);
        return new self($field('street1', 55), $field('street2', 55), $field('city', 55), $field('state', 25), $field('zip', 12), $field('country', 55));
    }

    /** Returns the new row's id. The place is made up from the text: Olio's geocoder, too, was a stub outside the web server. */
    public function insert(): int
    {
        $hash = crc32($this->street1 . '|' . $this->city . '|' . $this->zip);
        return Db::insert(
            'INSERT INTO ADDRESS (street1, street2, city, state, zip, country, latitude, longitude) VALUES (?, ?, ?, ?, ?, ?, ?, ?)',
            [
                $this->street1, $this->street2, $this->city, $this->state, $this->zip, $this->country,
                (string) (($hash & 0xFFFF) / 0xFFFF * 133 - 66.5), (string) (($hash >> 16) / 0xFFFF * 359 - 179.5),
            ],
        );
    }
}
