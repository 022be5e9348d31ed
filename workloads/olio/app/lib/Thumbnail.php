<?php
declare(strict_types=1);

namespace Olio;

/**
 * Thumbnails by libjpeg's and netpbm's programs: the gd extension would map a dozen codec libraries into every worker, and each mapping
 * lengthens the freeze of a migration.
 *
 * Profile olio-0.2 (quick resampling, 120 x 120): the decoder scales to a quarter, then single pixels are picked.
 * Profile olio-0.1 (imagecopyresampled, 133 x 99): every pixel is decoded and averaged.
 */
final class Thumbnail
{
    private const SHAPES = [
        'olio-0.1' => [['djpeg', '-pnm'], ['pamscale', '-xsize', '133', '-ysize', '99']],
        'olio-0.2' => [['djpeg', '-pnm', '-scale', '1/4', '-dct', 'fast', '-nosmooth'], ['pamscale', '-nomix', '-xsize', '120', '-ysize', '120']],
    ];

    /** Write the thumbnail of the JPEG at $source to a new file beside it and return its path. */
    public static function make(string $source): string
    {
        [$decode, $scale] = self::SHAPES[Config::profile()];
        $target = $source . '.thumb';
        register_shutdown_function(static function () use ($target): void {
            @unlink($target); // still there only if the request failed
        });
        self::pipeline([[...$decode, $source], $scale, ['cjpeg', '-quality', '90']], $target);
        clearstatcache(true, $target);
        if ((int) @filesize($target) < 100) {
            @unlink($target);
            throw new HttpError(400, 'The picture could not be read.');
        }
        return $target;
    }

    /** @param list<list<string>> $commands each one's output is the next one's input */
    private static function pipeline(array $commands, string $target): void
    {
        $processes = [];
        $input = ['file', '/dev/null', 'r'];
        $last = count($commands) - 1;
        foreach ($commands as $i => $command) {
            $output = $i === $last ? ['file', $target, 'w'] : ['pipe', 'w'];
            $pipes = [];
            $process = proc_open($command, [0 => $input, 1 => $output, 2 => ['file', '/dev/null', 'a']], $pipes, null, ['PATH' => '/usr/bin']);
            if ($process === false) {
                throw new \RuntimeException("cannot start {$command[0]}");
            }
            if (is_resource($input)) {
                fclose($input);
            }
            $processes[] = $process;
            $input = $pipes[1] ?? null;
        }
        array_map(proc_close(...), $processes);
    }
}
