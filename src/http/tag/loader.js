// The tag of `fbq`, for the stub that pages have: init, track, trackCustom, trackSingle, trackSingleCustom, consent.
// User data of init is not sent. A page where another script answers `fbq` is left to that one.
var base = home('{path}'), fbq = w.fbq, ids = {};

// Keeps one of Meta's cookies 90 days more, on the widest domain that takes it. Its second part says which: the number of
// labels behind the first. Its time changes with its last part only.
function renew(k, v) {
  var old = (d.cookie.match('(^| )' + k + '=([^;]+)') || [])[2], s = (old || '').split('.');
  var labels = location.hostname.split('.'), i = 0;
  if (old && (!v || k == '_fbp' || s[3] == v)) i = +s[1] || 0;
  else old = 0;
  for (; (old || v) && i <= labels.length; i++) {
    s = k + '=' + (old || 'fb.' + (i - !labels[i]) + '.' + Date.now() + '.' + v);
    d.cookie = s + ';path=/;max-age=7776000;SameSite=Lax' + (labels[i] ? ';domain=' + labels.slice(-1 - i).join('.') : '');
    if (d.cookie.indexOf(s) >= 0) return;
  }
}

// The name goes first: a filter list knows it behind another parameter.
function tell(id, word, data, names) {
  if (page.consent == 'granted' && !navigator.globalPrivacyControl) try {
    renew('_fbp', Math.random() * 1e10 >>> 1);
    renew('_fbc', (location.href.match(/[?&]fbclid=([^&#]{1,500})(&|#|$)/) || [])[1]);
  } catch (e) {}
  word = 'ev=' + enc(word) + '&id=' + enc(id) + form(data, {});
  // An empty one is as good as none.
  if (names) word += '&eid=' + enc(names.eventID || names.event_id || '');
  page.send(base + '/tr/', word);
}

function run(word, k, v, data, names) {
  word = (word + '').split('Custom')[0];
  if (word == 'init') ids[k] = 1;
  if (word == 'consent') page.agree(k);
  if (word == 'track') Object.keys(ids).forEach(function (id) { tell(id, k, v, data); });
  if (word == 'trackSingle') tell(k, v, data, names);
}

if (base && fbq && !fbq.callMethod) {
  if (!page) start(base);
  fbq.callMethod = run;
  fbq.queue.forEach(function (s) { run.apply(w, s); });
}
