<?php
declare(strict_types=1);
require __DIR__ . '/../lib/bootstrap.php';

use Olio\{Layout, People, Request, Session};

$message = '';
if (Request::isPost()) {
    $user = People::authenticate(Request::post('user_name'), Request::post('password'));
    if ($user !== null) {
        Session::begin($user['userid'], $user['username']);
        Request::redirect('index.php');
    }
    Session::end();
    $message = 'This name and password do not match.';
}
Layout::begin('Log in');
Layout::loginBox($message);
echo '</div></div></body></html>';
