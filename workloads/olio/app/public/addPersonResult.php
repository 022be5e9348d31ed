<?php
declare(strict_types=1);
require __DIR__ . '/../lib/bootstrap.php';

use Olio\{Address, FileStore, HttpError, People, Request, Thumbnail, Upload};

$person = [
    'username' => Request::post('add_user_name'), 'password' => Request::post('psword'), 'firstname' => Request::short('first_name', 25),
    'lastname' => Request::short('last_name', 25), 'email' => Request::short('email', 90), 'telephone' => Request::short('telephone', 25),
    'summary' => Request::short('summary', 2500), 'timezone' => Request::short('timezone', 40),
];
if (preg_match('/^[A-Za-z0-9_.-]{1,25}$/D', $person['username']) !== 1) {
    throw new HttpError(400, 'A user name has 1 to 25 letters, digits or any of “_.-”.');
}
if ($person['password'] === '' || $person['password'] !== Request::post('passwordx')) {
    throw new HttpError(400, 'The two passwords differ or are empty.');
}
if ($person['firstname'] === '' || $person['lastname'] === '') {
    throw new HttpError(400, 'Please give a first and a last name.');
}
$picture = Upload::jpeg('user_image');
$thumbnail = $picture === null ? null : Thumbnail::make($picture->path);
$id = People::add($person, Address::fromForm(), $picture !== null);
if ($picture !== null && $thumbnail !== null) {
    FileStore::put($picture->path, 'persons', $id, "P$id.jpg");
    FileStore::put($thumbnail, 'personThumbs', $id, "P{$id}T.jpg");
}
Request::redirect('users.php?username=' . u($person['username']));
