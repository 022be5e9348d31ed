/* City and state follow the postal code. */
document.addEventListener('change', function (event) {
  if (event.target.name === 'zip' && event.target.form) {
    request('GET', 'requestCityState.php?zip=' + encodeURIComponent(event.target.value), null, function (text) {
      var place = JSON.parse(text), form = event.target.form;
      if (place.city && !form.city.value) { form.city.value = place.city; form.state.value = place.state; }
    });
  }
});
