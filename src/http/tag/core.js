// What all tags share. Each is served as one function: this file, then its own. ES5, since old browsers buy, too; every
// statement ends with a semicolon or brace, since line ends are not served (minify.rs).
//
// The first tag on a page makes `page`, its state; further ones, of whichever file, join in.
var w = window, d = document, own = w.pixelgate || {}, page = own.page;

// A value for a form; what can't be one is left out rather than thrown.
function enc(v) {
  try { return encodeURIComponent(v && typeof v == 'object' ? JSON.stringify(v) : v); } catch (e) { return ''; }
}

// Own members that have a value: under a name of their own, or as custom data, brackets as they are, objects as JSON.
function form(data, names) {
  var q = '';
  Object.keys(Object(data)).forEach(function (k) {
    if (data[k] != null && typeof data[k] != 'function') {
      q += '&' + (names.hasOwnProperty(k) ? names[k] : 'cd[' + enc(k) + ']') + '=' + enc(data[k]);
    }
  });
  return q;
}

// The URL before a tag's own path: its events go there. Only where no script is said to run are all looked through.
function home(path) {
  function of(url, s) {
    s = s && s.src && s.src.split(/[?#]/)[0].split(path);
    return s && s[1] === '' ? s[0].replace(/\/[a-z][a-z]_[A-Z][A-Z]$/, '') : url;
  }
  return of('', d.currentScript) || [].reduce.call(d.getElementsByTagName('script'), of, '');
}

function start(base) {
  // What is not known to have arrived: at most 50 events, the oldest goes. `consent` is '', 'granted' or 'denied'.
  var queue = [], busy = {}, consent = '', wait = 1, timer = 0, left = 0, calls = own.q || [];

  // The visitor's disk, which is used only after consent.
  function store(act) {
    try { act(w.localStorage); } catch (e) { return; }
  }

  // What had to go for newer ones has had its try, and is not kept.
  function keep(e) {
    if (consent == 'granted' && queue.indexOf(e) >= 0) {
      store(function (s) { if (s.length < 200) s.setItem('pixelgate:' + e.k, JSON.stringify(e)); });
    }
  }

  function forget(e) {
    queue = queue.filter(function (k) { return k != e; });
    if (consent) store(function (s) { s.removeItem('pixelgate:' + e.k); });
  }

  // Whether it arrived, or was refused for good. Otherwise it waits, at most five minutes.
  function settle(e, ok) {
    busy[e.k] = 0;
    if (ok) {
      wait = 1;
      return forget(e);
    }
    keep(e);
    wait = Math.min(300, wait * 2);
    timer = timer || setTimeout(function () { timer = 0; flush(); }, wait * 500 * (1 + Math.random()));
  }

  function picture(e) {
    var s = busy[e.k] = new Image();
    s.onload = function () { settle(e, 1); };
    s.onerror = function () { settle(e); };
    s.src = e.u + '?' + body(e);
  }

  function body(e) { return e.b + '&st=' + Date.now(); }

  function beacon(e) { return navigator.sendBeacon && navigator.sendBeacon(e.u, body(e)); }

  // A request that outlives the page and whose answer is seen; else one of which none is. The image is for pages whose
  // policy allows no other: in a task of its own, since a page that ends fails its requests, which go on all the same.
  function post(e) {
    if (!e.k) {
      // A hundred random bits and the time: no two visits have one id, and nobody else can tell it.
      e.k = e.t.toString(36) + Math.random().toString(36).slice(2) + Math.random().toString(36).slice(2);
      if (!/&eid=/.test(e.b)) e.b += '&eid=' + e.k;
      // Meta's ids are read unless refused, or the request has them anyway: reading holds the page up.
      if (consent != 'denied' && !navigator.globalPrivacyControl && base.indexOf('.' + location.hostname.replace(/^www\./, '')) < 0) {
        d.cookie.replace(/(?:^|; )_(fb[pc])=([^;]+)/g, function (s, k, v) { e.b += '&' + k + '=' + enc(v); });
      }
    }
    busy[e.k] = 1;
    e.h = 0;
    if (w.fetch && 'keepalive' in Request.prototype) {
      fetch(e.u, {method: 'POST', body: body(e), keepalive: true, credentials: 'include'}).then(function (s) {
        settle(e, !/408|429|5../.test(s.status));
      }, function () { setTimeout(function () { picture(e); }); });
    } else if (beacon(e)) settle(e, 1);
    else picture(e);
  }

  // Older than a day it would be no news, and the gateway's memory of ids ends after two.
  function flush() {
    queue.forEach(function (e) {
      if (Date.now() - e.t > 864e5) forget(e);
      else if (!busy[e.k]) post(e);
    });
  }

  // The page may end here. What waits for another try gets one whose answer nobody sees, so it goes on waiting.
  function hide() {
    left = 1;
    queue.forEach(function (e) {
      if (!e.k) post(e);
      else if (!busy[e.k] && !e.h) e.h = beacon(e);
      keep(e);
    });
  }

  function agree(word) {
    consent = page.consent = word == 'grant' ? 'granted' : 'denied';
    store(function (s) {
      Object.keys(s).forEach(function (k) {
        var e = /^pixelgate:/.test(k) && JSON.parse(s[k]);
        if (e && consent == 'denied') s.removeItem(k);
        else if (e && e.u.indexOf(base) == 0 && !queue[49] && !(e.k in busy)) queue.push(e);
      });
    });
    flush();
  }

  function send(url, q) {
    // A page that is drawn ahead of a visit is no visit yet.
    if (d.prerendering) return d.addEventListener('prerenderingchange', function () { send(url, q); });
    var e = {k: '', t: Date.now(), u: url};
    e.b = q + '&dl=' + enc(location.href.slice(0, 4096)) + '&rl=' + enc(d.referrer) + '&ts=' + e.t;
    if (consent) e.b += '&consent=' + consent;
    if (queue[49]) forget(queue[0]);
    queue.push(e);
    // Whatever takes time is for a task of its own, unless the page may have no further one.
    if (left) post(e);
    else setTimeout(function () { if (!e.k) post(e); });
  }

  // window.pixelgate('track', pixel, {…}) and ('consent', 'grant' or 'revoke').
  function call(word, id, data) {
    var names = {value: 'value', currency: 'currency', test: 'test', event_name: 'ev', event_id: 'eid'};
    if (word == 'consent') agree(id);
    if (word == 'track') send(base + '/offsite_event.php', 'id=' + enc(id) + form(data, names) + '&pg=fp1');
  }

  d.addEventListener('visibilitychange', function () { if (d.hidden) hide(); });
  w.addEventListener('pagehide', hide);
  w.addEventListener('online', flush);
  w.pixelgate = call;
  page = call.page = {send: send, agree: agree, sent: {}};
  calls.forEach(function (s) { call.apply(w, s); });
}
