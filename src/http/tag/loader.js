// The tag of `fbq`, for the stub that pages have: init, track, trackCustom, trackSingle, trackSingleCustom, consent.
// User data of init is not sent. A page where another script answers `fbq` is left to that one.
var base = home('{path}'), fbq = w.fbq, ids = [];

// Keeps one of Meta's cookies 90 days more, on the widest domain that takes it. Its second part says which: the number of
// labels behind the first. Its time changes with its last part only.
function renew(k, v) {
  var old = (d.cookie.match('\\b' + k + '=([^;]+)') || [])[1], s = old ? old.split('.') : [];
  var labels = location.hostname.split('.'), i = 0;
  if (old && (!v || k == '_fbp' || s[3] == v)) i = +s[1] || 0;
  else if (v) old = 0;
  else return;
  for (; i <= labels.length; i++) {
    s = k + '=' + (old || 'fb.' + Math.min(i, labels.length - 1) + '.' + Date.now() + '.' + v);
    d.cookie = s + ';path=/;max-age=7776000;SameSite=Lax' + (labels[i] ? ';domain=' + labels.slice(-1 - i).join('.') : '');
    if (d.cookie.indexOf(s) >= 0) return;
  }
}

// The name goes first: a filter list knows it behind another parameter.
function tell(id, word, data, names) {
  if (page.consent == 'granted' && !navigator.globalPrivacyControl) {
    renew('_fbp', Math.random() * 2147483648 >>> 0);
    renew('_fbc', (location.href.match(/[?&]fbclid=([^&#]{1,500})(&|#|$)/) || [])[1]);
  }
  word = 'ev=' + enc(word) + '&id=' + enc(id) + form(data, {});
  if (names && (names.eventID || names.event_id)) word += '&eid=' + enc(names.eventID || names.event_id);
  page.send(base + '/tr/', word);
}

function run(word, k, v, data, names) {
  if (word == 'init' && ids.indexOf(k + '') < 0) ids.push(k + '');
  if (word == 'consent') page.agree(k);
  if (/^track(Custom)?$/.test(word)) ids.forEach(function (id) { tell(id, k, v, data); });
  if (/^trackSingle/.test(word)) tell(k, v, data, names);
}

if (base && fbq && !fbq.callMethod) {
  if (!page) start(base);
  fbq.callMethod = run;
  fbq.queue.forEach(function (s) { run.apply(w, s); });
}
