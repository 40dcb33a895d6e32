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

// The URL before a tag's own path and what is shaped like /en_US, if a script is that tag's. Here and below: no regular
// expressions where a page has not had any yet, since its first one takes longer than all the rest.
function before(s, path) {
  s = (s && s.src || '').split('?')[0].split('#')[0].split(path);
  path = s[0];
  return s[1] !== '' ? '' : path.slice(-6, -5) + path.slice(-3, -2) == '/_' && path.slice(-2) > '@' && path.slice(-2) < '[' ? path.slice(0, -6) : path;
}

// Where a tag's events go. Only where no script is said to run are all looked through.
function home(path) {
  for (var url = before(d.currentScript, path), i = url || d.scripts.length; !url && i--;) url = before(d.scripts[i], path);
  return url;
}

function start(base) {
  // What is not known to have arrived: at most 50 events, the oldest goes. `consent` is '', 'granted' or 'denied'.
  var queue = [], busy = {}, consent = '', wait = 1, timer = 0, left = 0;

  // The visitor's disk, which is used only after consent.
  function store(act) {
    try { act(w.localStorage); } catch (e) {}
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
    // Told again, it is the same listener; and of those that fail together one makes the wait longer.
    w.addEventListener('online', flush);
    timer = timer || setTimeout(function () { timer = 0; flush(); }, (wait = Math.min(300, wait * 2)) * 500 * (1 + Math.random()));
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
      // Fifty random bits and the time: no two visits have one id, and nobody else can tell it.
      e.k = e.t.toString(36) + Math.random().toString(36).slice(2);
      if ((e.b.split('&eid=')[1] || '&')[0] == '&') e.b += '&eid=' + e.k;
      // Meta's ids are read unless refused, or the request has them anyway: reading holds the page up. It is an error in
      // a frame without an origin of its own.
      if (consent != 'denied' && (base.split(':')[1] + '/').indexOf('.' + location.hostname.replace('www.', '') + '/') < 0 && !navigator.globalPrivacyControl) try {
        d.cookie.replace(/(^| )_(fb[pc])=([^;]+)/g, function (s, i, k, v) { e.b += '&' + k + '=' + enc(v); });
      } catch (e) {}
    }
    busy[e.k] = 1;
    e.h = 0;
    if (w.fetch && 'keepalive' in Request.prototype) {
      fetch(e.u, {method: 'POST', body: body(e), keepalive: 1, credentials: 'include'}).then(function (s) {
        settle(e, s.ok || !/408|429|5../.test(s.status));
      }, function () { setTimeout(picture, 0, e); });
    } else beacon(e) ? settle(e, 1) : picture(e);
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
        if (k.indexOf('pixelgate:')) return;
        if (consent == 'denied') return s.removeItem(k);
        var e = JSON.parse(s[k]);
        if (!e.u.indexOf(base) && !queue[49] && busy[e.k] == null) queue.push(e);
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
  w.pixelgate = call;
  page = call.page = {send: send, agree: agree, sent: {}};
  (own.q || []).forEach(function (s) { call.apply(w, s); });
}
