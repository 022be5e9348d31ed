/* The few helpers the pages share: element by id, a request in the background, and replacing an element by its answer. */
function $(id) { return document.getElementById(id); }

function request(method, url, body, done) {
  var call = new XMLHttpRequest();
  call.open(method, url);
  if (body) { call.setRequestHeader('Content-Type', 'application/x-www-form-urlencoded'); }
  call.onload = function () { if (call.status === 200) { done(call.responseText); } };
  call.send(body || null);
}

function replaceBy(id, url) {
  request('GET', url, null, function (html) { if ($(id)) { $(id).innerHTML = html; } });
  return false;
}
