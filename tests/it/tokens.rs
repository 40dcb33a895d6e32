//! Tokens, the audit log and copies of the registry: the commands beside a running gateway.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};

use super::desk::{Desk, accepted, fault, refused};
use super::gateway::Site;

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn audit(site: &Site) -> Vec<Value> {
    stdout(&site.run(&["registry", "audit"])).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn tokens_are_made_scoped_and_revoked_beside_a_running_gateway() {
    let site = Site::new("");
    let gateway = site.start();
    let first = Desk::first(&site);
    let (ours, theirs) = (first.create_in("9", "ours"), first.create_in("8", "theirs"));
    let scoped = Desk::made(&site, &["--name", "scoped", "--ad-account", "9", "--ad-account", "7"]);
    let reader = Desk::made(&site, &["--name", "reader", "--ad-account", "9", "--read-only"]);
    let target = |id: &str| format!("/offsitepixels/{id}");
    let list = |account: &str| format!("/offsitepixels?fb_ad_account_id={account}");
    let new = |account: &str, name: &str| format!("fb_ad_account_id={account}&name={name}&tag=OTHER");

    let foreign = "403 account_not_allowed -";
    for desk in [&scoped, &reader] {
        assert_eq!(fault(&desk.get(&target(&theirs))), foreign);
        assert_eq!(fault(&desk.get(&list("8"))), foreign);
        assert_eq!((desk.get(&target(&ours)).status, desk.get(&list("9")).status), (200, 200));
    }
    assert_eq!(fault(&scoped.form("POST", "/offsitepixels", &new("8", "x"))), foreign);
    assert_eq!(fault(&scoped.put(&theirs, "name=x")), foreign);
    assert_eq!(fault(&scoped.delete(&theirs)), foreign);
    let only_reads = "403 read_only_token -";
    assert_eq!(fault(&reader.form("POST", "/offsitepixels", &new("9", "x"))), only_reads);
    assert_eq!(fault(&reader.put(&ours, "name=x")), only_reads);
    assert_eq!(fault(&reader.delete(&ours)), only_reads);
    assert_eq!(scoped.form("POST", "/offsitepixels", &new("7", "seven")).status, 200);
    assert_eq!((scoped.put(&ours, "name=mine").status, scoped.delete(&ours).status), (200, 204));
    assert_eq!(first.names("&archived=any"), ["mine"]);
    assert_eq!(first.single(&theirs)["name"], "theirs");

    // In force at the next request, not after some time.
    for desk in [&scoped, &reader] {
        let name = if desk.token == scoped.token { "scoped" } else { "reader" };
        assert_eq!(desk.get(&list("9")).status, 200);
        assert_eq!(stdout(&site.run(&["token", "revoke", name])), format!("revoked {name}\n"));
        let reply = desk.get(&list("9"));
        assert_eq!(fault(&reply), "401 invalid_token -");
        assert_eq!(reply.header("www-authenticate"), Some("OAuth realm=\"pixelgate\", error=\"invalid_token\""));
        assert_eq!(fault(&desk.put(&ours, "name=x")), "401 invalid_token -");
    }
    let again = site.run(&["token", "revoke", "reader"]);
    assert_eq!(again.status.code(), Some(1), "only once");
    let listed = stdout(&site.run(&["token", "list"]));
    let columns: Vec<Vec<&str>> = listed.lines().skip(1).map(|line| line.split('\t').collect()).collect();
    assert_eq!((columns[1][0], columns[1][1], columns[1][2]), ("scoped", "read,write", "9,7"));
    assert_eq!((columns[2][0], columns[2][1], columns[2][2]), ("reader", "read", "9"));
    assert!(columns[0][4] == "-" && columns[1][4].starts_with("20"), "{listed}");
    assert_eq!(gateway.stop(), Some(0));

    let mut seen = site.log() + &listed + &stdout(&site.run(&["registry", "audit"]));
    for entry in fs::read_dir(site.data()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && !path.ends_with("management-token") {
            seen.push_str(&String::from_utf8_lossy(&fs::read(path).unwrap()));
        }
    }
    for desk in [&first, &scoped, &reader] {
        assert!(!seen.contains(&desk.token), "only its hash is anywhere");
    }
}

#[test]
fn bad_tokens_are_refused_by_the_command() {
    let site = Site::new("");
    for arguments in [
        &["--name", ""][..],
        &["--name", "a\tb"],
        &["--name", "management-token"],
        &["--name", "x", "--ad-account", "act_9"],
        &["--name", "x", "--ad-account", ""],
    ] {
        let output = site.run(&[&["token", "create"], arguments].concat());
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{arguments:?}");
    }
    assert_eq!(site.run(&["token", "create"]).status.code(), Some(2), "a name is needed");
    Desk::made(&site, &["--name", "x"]);
    assert_eq!(site.run(&["token", "create", "--name", "x"]).status.code(), Some(1), "names of those in force differ");
}

#[test]
fn the_audit_log_tells_who_changed_what() {
    let site = Site::new("");
    assert_eq!(site.run(&["registry", "audit"]).status.code(), Some(1), "there is no registry yet");
    let gateway = site.start();
    let first = Desk::first(&site);
    let hostile = Desk::made(&site, &["--name", "Jo \"<&", "--ad-account", "9"]);
    let ask = |method: &str, target: &str, body: &str, id: &str| {
        let lines = ["Content-Type: application/x-www-form-urlencoded", &format!("X-Request-Id: {id}")];
        hostile.send(method, target, &lines, body)
    };
    let reply = ask("POST", "/offsitepixels", "fb_ad_account_id=9&name=a%0A%1B%22&tag=LEAD", "request-1");
    assert_eq!(reply.status, 200);
    let id = super::desk::value(&reply)["id"].as_str().unwrap().to_owned();
    let target = format!("/offsitepixels/{id}");
    assert_eq!(ask("PUT", &target, "name=b&tag=OTHER", "request-2").status, 200);
    assert_eq!(ask("PUT", &target, "name=b", "no-change").status, 200);
    assert_eq!(ask("PUT", &target, "name=", "refused").status, 400);
    assert_eq!(first.delete(&id).status, 204);
    assert_eq!(ask("DELETE", &target, "", "no-change").status, 204);
    assert_eq!(ask("PUT", &target, "archived=false", "request-4").status, 200);
    stdout(&site.run(&["token", "revoke", "Jo \"<&"]));
    assert_eq!(ask("PUT", &target, "name=c", "revoked").status, 401);

    let text = stdout(&site.run(&["registry", "audit"]));
    assert!(!text.bytes().any(|byte| byte < 0x20 && byte != b'\n'), "hostile text is escaped: {text}");
    let mut lines = audit(&site);
    let user = format!("uid:{}", rustix::process::getuid().as_raw());
    let made = lines[4]["request_id"].clone();
    assert_eq!(made.as_str().map(str::len), Some(36), "an id of the gateway's own: {made}");
    for line in &mut lines {
        let at = line.as_object_mut().unwrap().remove("at").unwrap();
        assert!(at.as_str().unwrap().starts_with("20") && at.as_str().unwrap().ends_with('Z'), "{at}");
    }
    let (jo, everything) = ("token:Jo \"<&", json!({ "ad_accounts": [], "read_only": false }));
    let pixel = |mut line: Value| {
        line["pixel_id"] = id.as_str().into();
        line["ad_account_id"] = "9".into();
        line
    };
    let first_image = json!({ "name": "a\n\u{1b}\"", "tag": "lead", "archived": false });
    let (no, yes) = (json!({ "archived": false }), json!({ "archived": true }));
    let expected = [
        json!({ "seq": 1, "actor": "start", "action": "token.created", "token": "management-token",
                "new": everything }),
        json!({ "seq": 2, "actor": user, "action": "token.created", "token": "Jo \"<&",
                "new": { "ad_accounts": ["9"], "read_only": false } }),
        pixel(json!({ "seq": 3, "actor": jo, "action": "pixel.created", "new": first_image,
                      "request_id": "request-1" })),
        pixel(
            json!({ "seq": 4, "actor": jo, "action": "pixel.changed", "old": { "name": "a\n\u{1b}\"", "tag": "lead" },
                      "new": { "name": "b", "tag": "other" }, "request_id": "request-2" }),
        ),
        pixel(json!({ "seq": 5, "actor": "token:management-token", "action": "pixel.archived", "old": no, "new": yes,
                      "request_id": made })),
        pixel(json!({ "seq": 6, "actor": jo, "action": "pixel.restored", "old": yes, "new": no,
                      "request_id": "request-4" })),
        json!({ "seq": 7, "actor": user, "action": "token.revoked", "token": "Jo \"<&" }),
    ];
    assert_eq!(lines, expected);
    gateway.kill();
    assert_eq!(audit(&site).len(), 7, "written with the change");
}

#[test]
fn a_copy_of_a_running_registry_comes_back_elsewhere() {
    let site = Site::new("");
    let gateway = site.start();
    let first = Desk::first(&site);
    let jo = Desk::made(&site, &["--name", "Jo"]);
    let (live, archived) = (jo.create("live"), jo.create("archived"));
    assert_eq!(jo.delete(&archived).status, 204);
    let copy = site.data().with_file_name("copy.sqlite");
    let copy_name = copy.to_str().unwrap();
    // While somebody writes.
    let done = AtomicBool::new(false);
    let written = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut count = 0;
            while !done.load(Ordering::Acquire) {
                first.create(&format!("n{count}"));
                count += 1;
            }
            count
        });
        let before = first.names("").len();
        assert!(stdout(&site.run(&["registry", "backup", copy_name])).contains(copy_name));
        done.store(true, Ordering::Release);
        (before, writer.join().unwrap())
    });
    assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
    let bytes = fs::read(&copy).unwrap();
    let again = site.run(&["registry", "backup", copy_name]);
    assert_eq!(again.status.code(), Some(1), "nothing is overwritten");
    assert!(fs::read(&copy).unwrap() == bytes);
    let nowhere = site.run(&["registry", "backup", "no/such/directory/copy"]);
    assert_eq!(nowhere.status.code(), Some(1), "{}", String::from_utf8_lossy(&nowhere.stderr));
    let leftovers = fs::read_dir(copy.parent().unwrap()).unwrap();
    assert!(!leftovers.flatten().any(|entry| entry.file_name().to_string_lossy().ends_with(".new")));
    assert_eq!(gateway.stop(), Some(0));

    let fresh = Site::new("");
    assert_eq!(fresh.run(&["registry", "backup", copy_name]).status.code(), Some(1), "there is nothing to copy");
    fs::create_dir(fresh.data()).unwrap();
    fs::copy(&copy, fresh.data().join("registry.sqlite")).unwrap();
    let gateway = fresh.start();
    assert!(!fresh.data().join("management-token").exists(), "the first token is the old one");
    let (first, jo) = (first.at(&fresh), jo.at(&fresh));
    let names = first.names("&archived=true");
    assert_eq!(names, ["archived"]);
    let (before, count) = written;
    let live_names = jo.names("");
    assert_eq!(live_names[0], "live");
    assert!((before..=count + 1).contains(&live_names.len()), "{before} {} {count}", live_names.len());
    assert!(accepted(&fresh, &live) && refused(&fresh, &archived, "archived_pixel"));
    let lines = audit(&fresh);
    let count = |action: &str| lines.iter().filter(|line| line["action"] == action).count();
    assert_eq!((count("token.created"), count("pixel.archived")), (2, 1));
    assert_eq!(count("pixel.created"), live_names.len() + 1, "of one moment: each pixel with its row");
    jo.create("after");
    assert_eq!(gateway.stop(), Some(0));
}
