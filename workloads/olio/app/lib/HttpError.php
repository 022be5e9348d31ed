<?php
declare(strict_types=1);

namespace Olio;

/** Ends the request with a status and a sentence for the visitor. */
final class HttpError extends \RuntimeException
{
    public function __construct(public readonly int $status, string $message)
    {
        parent::__construct($message);
    }
}
