// The console. Everything that comes from outside is put on the page as text, never as markup.
(function () {
  "use strict";

  var EVENTS_MAX = 200, PIXELS_MAX = 200, FIGURES_MS = 2000, PIXELS_MS = 5000, RETRY_MS = 2000;
  var KEY = "pixelgate-token";
  var REASONS = {
    missing_id: "The request has no id: the page's snippet is incomplete.",
    invalid_id: "The id is not 1 to 20 digits: often a macro that was not filled in.",
    malformed_body: "The body is not what its Content-Type says.",
    invalid_value: "The value is no decimal (validation.strict is on).",
    invalid_currency: "The currency is no ISO 4217 code (validation.strict is on).",
    origin_not_allowed: "The page is not among the pixel's origins in the config.",
    unknown_pixel: "No pixel has this id: it was never created here, or the list is not synced.",
    archived_pixel: "The pixel is archived.",
    method_not_allowed: "Events are sent by GET, HEAD or POST.",
    body_timeout: "The body did not arrive in time: a slow or broken client.",
    body_too_large: "The body exceeds limits.max_body_bytes.",
    uri_too_long: "The URL exceeds server.max_uri_bytes.",
    unsupported_media_type: "The Content-Type or an encoding of the body can't be read.",
    header_too_large: "The headers exceed server.max_header_bytes: usually cookies.",
    rate_limited: "The sender is over a limit (limits.*).",
    journal_full: "There is no room: unpublished records reached journal.max_bytes, or the disk is full.",
    journal_unavailable: "The disk failed.",
    overloaded: "Too much is in flight (server.max_inflight_bytes).",
    shutting_down: "The gateway was stopping."
  };
  var CAUSES = {
    unreachable: "no broker answers", authentication: "credentials are refused", authorization: "an ACL is missing",
    unknown_topic: "the topic is missing", cursor_partition: "the cursor's partition is missing",
    clock: "the broker refuses the time", quota: "a quota or limit of the topic", fenced: "another gateway publishes " +
    "under this identity", schema_registry: "the schema registry gives no id", damage: "damaged records wait for a person"
  };

  var REFUSED = "This listener asks for a management token.";

  var token = null, stream = null, refused = false, only = null, pixelsTimer = null, last = null;
  try { token = sessionStorage.getItem(KEY); } catch (error) { /* Then it is kept in memory only. */ }

  function id(name) { return document.getElementById(name); }

  function element(name, className, text) {
    var made = document.createElement(name);
    if (className) { made.className = className; }
    if (text !== undefined) { made.textContent = text; }
    return made;
  }

  function ask(path, options) {
    options = options || {};
    options.headers = options.headers || {};
    options.cache = "no-store";
    if (token) { options.headers.Authorization = "OAuth " + token; }
    return fetch(path, options);
  }

  // The token: asked for when an answer says that one is needed.

  function keep(given) {
    token = given;
    try {
      if (given) { sessionStorage.setItem(KEY, given); } else { sessionStorage.removeItem(KEY); }
    } catch (error) { /* Then it is kept in memory only. */ }
    id("sign-out").hidden = !given;
  }

  var afterwards = null;

  function signIn(why, then) {
    afterwards = then;
    id("sign-in-why").textContent = why;
    id("sign-in-error").textContent = "";
    if (!id("sign-in").open) { id("sign-in").showModal(); }
    id("token").focus();
  }

  id("sign-in-form").addEventListener("submit", function (event) {
    event.preventDefault();
    var before = token;
    keep(id("token").value.trim());
    ask("api/pixels?limit=1").then(function (reply) {
      if (reply.status === 401) {
        keep(before);
        id("sign-in-error").textContent = "This token is unknown or has been revoked.";
        return;
      }
      id("token").value = "";
      refused = false;
      id("sign-in").close();
      restart();
      if (afterwards) { afterwards(); }
    }, function () { id("sign-in-error").textContent = "The gateway does not answer."; });
  });
  id("sign-in-cancel").addEventListener("click", function () { id("sign-in").close(); });
  // By that button or Escape: what could not be shown says so, and how to see it.
  id("sign-in").addEventListener("close", function () {
    if (!refused) { return; }
    id("live-state").textContent = "Live events need a management token. ";
    button(id("live-state"), "Sign in", "to see live events", function () { signIn(REFUSED); });
  });
  id("sign-out").addEventListener("click", function () { keep(null); location.reload(); });

  // Figures: what /metrics says, for people.

  function samples(text) {
    var found = {};
    text.split("\n").forEach(function (line) {
      var match = /^([a-z_]+)(\{.*\})? (\S+)$/.exec(line);
      if (match && line[0] !== "#") { found[match[1] + (match[2] || "")] = Number(match[3]); }
    });
    return found;
  }

  function count(number) { return Math.round(number).toLocaleString("en"); }

  function bytes(number) {
    var units = ["B", "KiB", "MiB", "GiB", "TiB"], unit = 0;
    while (number >= 1024 && unit < 4) { number /= 1024; unit += 1; }
    return (unit && number < 10 ? number.toFixed(1) : Math.round(number)) + " " + units[unit];
  }

  function span(seconds) {
    if (seconds < 60) { return Math.round(seconds) + " s"; }
    if (seconds < 3600) { return Math.round(seconds / 60) + " min"; }
    return seconds < 172800 ? Math.round(seconds / 3600) + " h" : Math.round(seconds / 86400) + " d";
  }

  function figure(list, label, value, note, className, meter) {
    var item = element("li");
    item.appendChild(element("span", "label", label));
    item.appendChild(element("span", "value " + (className || ""), value));
    if (meter) {
      var bar = element("meter");
      bar.max = 1; bar.low = 0.7; bar.high = 0.9; bar.optimum = 0; bar.value = meter.value;
      bar.setAttribute("aria-label", meter.label);
      item.appendChild(bar);
    }
    if (note) { item.appendChild(element("span", "note", note)); }
    list.appendChild(item);
  }

  function sum(now, start) {
    return Object.keys(now).reduce(function (all, name) { return name.indexOf(start) === 0 ? all + now[name] : all; }, 0);
  }

  function showFigures(now, at) {
    var list = id("figures"), events = "pixelgate_events_total{outcome=\"";
    var accepted = now[events + "accepted\",reason=\"\"}"] || 0, rejected = sum(now, events + "rejected");
    var copies = sum(now, events + "duplicate"), ignored = sum(now, events + "ignored");
    var rate = last && at > last.at ? (accepted - last.accepted) / ((at - last.at) / 1000) : null;
    last = { at: at, accepted: accepted };
    var used = (now.pixelgate_journal_unpublished_bytes || 0) + (now.pixelgate_journal_parked_bytes || 0);
    var max = now.pixelgate_journal_max_bytes || 1;
    var age = now.pixelgate_publish_oldest_pending_age_seconds;
    var causes = Object.keys(CAUSES).filter(function (cause) {
      return now["pixelgate_publish_blocked{cause=\"" + cause + "\"}"] === 1;
    });
    list.textContent = "";
    figure(list, "Accepted", count(accepted), rate ? rate.toFixed(1) + " a second" : "since the start");
    figure(list, "Rejected", count(rejected), "since the start", rejected ? "warn" : "");
    var all = accepted + copies;
    figure(list, "Duplicates", all ? (100 * copies / all).toFixed(1) + " %" : "–", count(copies) + (copies == 1 ? " copy" : " copies") +
      " by event id");
    figure(list, "Ignored", count(ignored), "HEAD, prefetch, GPC, consent");
    figure(list, "Journal", bytes(now.pixelgate_journal_bytes || 0), bytes(used) + " unpublished or parked of " + bytes(max), "",
      { value: Math.min(1, used / max), label: "Unpublished and parked part of journal.max_bytes" });
    figure(list, "Disk", bytes(now.pixelgate_journal_filesystem_free_bytes || 0), "free");
    if (age === undefined) {
      figure(list, "Kafka", "none", "records rest in the journal");
    } else {
      var note = causes.map(function (cause) { return CAUSES[cause]; }).join("; ");
      figure(list, "Kafka", causes.length ? "blocked" : "publishing", note, causes.length ? "bad" : "good");
      figure(list, "Lag", count(now.pixelgate_journal_pending_events || 0),
        age ? "oldest waits for " + span(age) : "nothing waits", age > 60 ? "warn" : "");
    }
    figure(list, "Parked", count(now.pixelgate_journal_parked_events || 0), "refused by Kafka",
      now.pixelgate_journal_parked_events ? "bad" : "");
    figure(list, "Pixels", count(now.pixelgate_registry_pixels || 0), "known here");
  }

  function state(text, className) {
    id("state").textContent = text;
    id("state").className = className;
  }

  function figures() {
    Promise.all([fetch("metrics", { cache: "no-store" }), fetch("readyz", { cache: "no-store" })]).then(function (got) {
      return Promise.all([got[0].text(), got[1].text()]).then(function (texts) {
        showFigures(samples(texts[0]), Date.now());
        var checks = {};
        try { checks = JSON.parse(texts[1]).checks || {}; } catch (error) { /* No JSON: the status has to do. */ }
        var wrong = Object.keys(checks).filter(function (name) { return checks[name] !== "ok"; });
        if (got[1].ok) { state("Ready", "good"); } else {
          state("Not ready: " + wrong.map(function (name) { return name + " " + checks[name]; }).join(", "), "bad");
        }
      });
    }).catch(function () { state("The gateway does not answer", "bad"); }).then(function () {
      setTimeout(figures, FIGURES_MS);
    });
  }

  // Live events: server-sent events, read by fetch, as EventSource can't send a token.

  function line(kind, record) {
    var item = element("li", kind), head = element("div", "head");
    head.appendChild(element("span", "what " + (kind === "rejected" ? "bad" : "good"), kind));
    head.appendChild(element("time", "", String(record.received_at || "").slice(11, 23)));
    var name = record.pixel_name || record.pixel_id || "no pixel";
    head.appendChild(element("span", "", name));
    if (record.pixel_name) { head.appendChild(element("span", "id", record.pixel_id)); }
    if (record.event_name) { head.appendChild(element("span", "", record.event_name)); }
    if (record.value) { head.appendChild(element("span", "", record.value + " " + (record.currency || ""))); }
    if (record.test) { head.appendChild(element("span", "warn", "trial")); }
    if (record.consent) { head.appendChild(element("span", "id", "consent " + record.consent)); }
    if (record.gpc) { head.appendChild(element("span", "id", "GPC")); }
    item.appendChild(head);
    if (record.reason) {
      item.appendChild(element("p", "", record.reason + " – " + (REASONS[record.reason] || "See docs/contract.md.")));
    }
    if (record.warnings) { item.appendChild(element("p", "warn", "warnings: " + record.warnings.join(", "))); }
    if (record.page_url) { item.appendChild(element("p", "", "page: " + record.page_url)); }
    if (record.referrer) { item.appendChild(element("p", "", "from: " + record.referrer)); }
    var details = element("details");
    details.appendChild(element("summary", "", "Whole record"));
    details.appendChild(element("pre", "", JSON.stringify(record, null, 2)));
    item.appendChild(details);
    return item;
  }

  function show(kind, data) {
    if (id("pause").checked || (id("only-rejected").checked && kind !== "rejected")) { return; }
    var record;
    try { record = JSON.parse(data); } catch (error) { return; }
    if (id("only-trials").checked && !record.test) { return; }
    var list = id("events");
    list.insertBefore(line(kind, record), list.firstChild);
    while (list.childNodes.length > EVENTS_MAX) { list.removeChild(list.lastChild); }
    id("live-state").textContent = "";
  }

  function read(reader, rest, decoder) {
    return reader.read().then(function (part) {
      if (part.done) { return; }
      rest += decoder.decode(part.value, { stream: true });
      var blocks = rest.split("\n\n");
      rest = blocks.pop();
      blocks.forEach(function (block) {
        var kind = "", data = "";
        block.split("\n").forEach(function (field) {
          if (field.indexOf("event: ") === 0) { kind = field.slice(7); }
          if (field.indexOf("data: ") === 0) { data = field.slice(6); }
        });
        if (data) { show(kind === "rejected" ? "rejected" : "accepted", data); }
      });
      return read(reader, rest, decoder);
    });
  }

  function listen() {
    var own = stream = new AbortController();
    refused = false;
    ask("events" + (only ? "?pixel_id=" + encodeURIComponent(only) : ""), { signal: own.signal }).then(function (reply) {
      if (reply.status === 401) {
        refused = true;
        signIn(REFUSED);
        throw new Error("no token");
      }
      if (!reply.ok) { throw new Error("answered " + reply.status); }
      if (!id("events").firstChild) { id("live-state").textContent = "Listening. Nothing has come yet."; }
      return read(reply.body.getReader(), "", new TextDecoder());
    }).catch(function () {}).then(function () {
      if (own !== stream || refused) { return; }
      id("live-state").textContent = "The stream has ended; trying again.";
      setTimeout(function () { if (own === stream) { listen(); } }, RETRY_MS);
    });
  }

  function follow(pixel, name) {
    only = pixel;
    id("all-pixels").hidden = !pixel;
    id("all-pixels").textContent = "Only " + name + " – show all";
    id("events").textContent = "";
    if (stream) { stream.abort(); }
    listen();
  }

  id("all-pixels").addEventListener("click", function () { follow(null, ""); });

  // Pixels.

  function cell(row, label, text, className) {
    var made = element("td", className, text);
    if (label) { made.setAttribute("data-label", label); }
    row.appendChild(made);
    return made;
  }

  function button(cell, text, label, act) {
    var made = element("button", "plain", text);
    made.type = "button";
    made.setAttribute("aria-label", text + ": " + label);
    made.addEventListener("click", act);
    cell.appendChild(made);
  }

  function row(pixel) {
    var made = element("tr"), name = pixel.name || pixel.id;
    cell(made, "", pixel.name || "–");
    cell(made, "Id", pixel.id);
    var status = pixel.archived ? "Archived" : pixel.status;
    cell(made, "Status", status, status === "Active" ? "good" : status === "Unverified" ? "warn" : "");
    var ago = pixel.last_event_at ? span((Date.now() - Date.parse(pixel.last_event_at)) / 1000) + " ago" : "never";
    cell(made, "Last event", ago).title = pixel.last_event_at || "";
    var actions = cell(made, "", undefined, "actions");
    button(actions, "Watch", name, function () { follow(pixel.id, name); id("live").focus(); });
    button(actions, "Diagnostics", name, function () { diagnostics(pixel.id, name); });
    button(actions, "Snippet", name, function () { snippet(pixel.id); });
    button(actions, "Trial event", name, function () { trial(pixel.id, name); });
    return made;
  }

  function pixels() {
    clearTimeout(pixelsTimer);
    var query = id("search").value.trim();
    ask("api/pixels?limit=" + PIXELS_MAX + "&q=" + encodeURIComponent(query)).then(function (reply) {
      if (!reply.ok) { throw new Error(); }
      return reply.json();
    }).then(function (found) {
      var body = id("pixels"), focused = document.activeElement && body.contains(document.activeElement);
      id("pixels-state").textContent = found.total > found.pixels.length
        ? "The " + found.pixels.length + " with the newest events of " + count(found.total) + "."
        : found.total ? "" : query ? "No pixel matches." : "There is no pixel yet. Create one, and paste its snippet into a page.";
      if (focused) { return; }
      body.textContent = "";
      found.pixels.forEach(function (pixel) { body.appendChild(row(pixel)); });
    }).catch(function () {}).then(function () { pixelsTimer = setTimeout(pixels, PIXELS_MS); });
  }

  id("search").addEventListener("input", pixels);

  function manage(path, options, then, fail) {
    var again = function () { manage(path, options, then, fail); };
    if (!token) { return signIn("Managing pixels needs a management token.", again); }
    ask("api/offsitepixels" + path, options).then(function (reply) {
      return reply.json().then(function (body) {
        if (reply.status === 401) { return signIn("This needs a management token that is valid.", again); }
        if (!reply.ok) { throw new Error(body.error && body.error.message || "answered " + reply.status); }
        then(body);
      });
    }).catch(function (error) { fail(error.message); });
  }

  function snippet(pixel) {
    manage("/" + encodeURIComponent(pixel), {}, function (found) {
      id("snippet-text").value = found.js_pixel || "";
      id("snippet-state").textContent = "";
      id("snippet").showModal();
      id("snippet-text").focus();
      id("snippet-text").select();
      id("snippet-text").scrollTop = id("snippet-text").scrollLeft = 0;
    }, function (text) { id("pixels-state").textContent = "No snippet: " + text; });
  }

  id("snippet-copy").addEventListener("click", function () {
    id("snippet-text").select();
    var done = function (fine) { id("snippet-state").textContent = fine ? "Copied." : "Press Ctrl+C to copy."; };
    if (navigator.clipboard) {
      navigator.clipboard.writeText(id("snippet-text").value).then(function () { done(true); }, function () { done(false); });
    } else { done(document.execCommand("copy")); }
  });
  id("snippet-close").addEventListener("click", function () { id("snippet").close(); });

  // A pixel's diagnostics: what became of its requests here lately, and why.

  function total(counts) {
    return Object.keys(counts || {}).reduce(function (all, word) { return all + counts[word]; }, 0);
  }

  function fact(list, name, texts, className) {
    list.appendChild(element("dt", "", name));
    texts.forEach(function (text) { list.appendChild(element("dd", className, text)); });
  }

  function when(time) { return String(time || "").replace("T", " ").slice(0, 19) + " UTC"; }

  function showDiagnostics(found) {
    var list = id("diagnostics-facts"), day = found.last_24h || {}, rejected = day.rejected || {};
    var status = found.archived ? "Archived" : found.status_here || "No pixel has this id";
    list.textContent = id("hours").textContent = id("rejects").textContent = "";
    fact(list, "Status here", [status], status === "Active" ? "good" : "warn");
    fact(list, "Counted", ["at " + found.node_id + " since " + when(found.since)]);
    fact(list, "Last accepted", [found.last_accepted
      ? when(found.last_accepted.received_at) + ", record " + found.last_accepted.record_id : "none"]);
    fact(list, "Last rejected", [found.last_rejected
      ? when(found.last_rejected.received_at) + ", " + found.last_rejected.reason : "none"]);
    fact(list, "Accepted in 24 h", [count(day.accepted || 0) + ", " + count(day.trials || 0) + " of them trials"]);
    fact(list, "Rejected in 24 h", Object.keys(rejected).map(function (reason) {
      return count(rejected[reason]) + " × " + reason + " – " + (REASONS[reason] || "See docs/contract.md.");
    }).concat(total(rejected) ? [] : "none"), total(rejected) ? "bad" : "");
    [["Ignored in 24 h", day.ignored], ["Warnings in 24 h", day.warnings]].forEach(function (counts) {
      var words = Object.keys(counts[1] || {});
      fact(list, counts[0], [words.map(function (word) { return count(counts[1][word]) + " × " + word; }).join(", ") || "none"]);
    });
    (found.hours || []).slice().reverse().forEach(function (hour) {
      var made = element("tr");
      cell(made, "Begin", when(hour.begin).slice(0, 16));
      cell(made, "Accepted", count(hour.accepted));
      cell(made, "Trials", count(hour.trials));
      cell(made, "Rejected", count(total(hour.rejected)), total(hour.rejected) ? "bad" : "");
      cell(made, "Ignored", count(total(hour.ignored)));
      id("hours").appendChild(made);
    });
    (found.last_rejects || []).forEach(function (record) {
      record.pixel_id = found.id;
      id("rejects").appendChild(line("rejected", record));
    });
    if (!id("rejects").firstChild) { id("rejects").appendChild(element("li", "", "None is remembered.")); }
  }

  function diagnostics(pixel, name) {
    var fail = function (text) {
      id(id("diagnostics").open ? "diagnostics-state" : "pixels-state").textContent = "No diagnostics: " + text;
    };
    manage("/" + encodeURIComponent(pixel) + "/diagnostics", {}, function (found) {
      showDiagnostics(found);
      id("diagnostics-title").textContent = "Diagnostics of " + name;
      id("diagnostics-state").textContent = "Of this node, in memory; asked at " + when(new Date().toISOString());
      id("diagnostics-again").onclick = function () { diagnostics(pixel, name); };
      if (!id("diagnostics").open) { id("diagnostics").showModal(); }
      id("diagnostics-again").focus();
    }, fail);
  }

  id("diagnostics-close").addEventListener("click", function () { id("diagnostics").close(); });

  function trial(pixel, name) {
    ask("api/trial?id=" + encodeURIComponent(pixel), { method: "POST" }).then(function (reply) {
      return reply.json();
    }).then(function (answer) {
      id("pixels-state").textContent = "Trial event for " + name + ": " + answer.message;
    }).catch(function () { id("pixels-state").textContent = "The trial event could not be sent."; });
  }

  id("new-pixel").addEventListener("click", function () {
    id("create-error").textContent = "";
    id("create").showModal();
    id("account").focus();
  });
  id("create-cancel").addEventListener("click", function () { id("create").close(); });
  id("create-form").addEventListener("submit", function (event) {
    event.preventDefault();
    var body = new URLSearchParams({
      fb_ad_account_id: id("account").value.trim(), name: id("name").value, tag: id("tag").value
    });
    manage("", { method: "POST", body: body }, function (made) {
      id("create").close();
      id("name").value = "";
      pixels();
      snippet(made.id);
    }, function (text) { id("create-error").textContent = text; });
  });

  function restart() {
    last = null;
    follow(only, "");
    pixels();
  }

  keep(token);
  figures();
  listen();
  pixels();
})();
