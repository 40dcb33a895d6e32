//! Who manages pixels, from outside: requests with a token to one listener, and what they say in short.

use std::net::SocketAddr;

use serde_json::Value;

use super::client::{Client, Reply};
use super::gateway::Site;

pub const FORM: &str = "application/x-www-form-urlencoded";
pub const JSON: &str = "application/json";

/// A gateway's management as one token's owner sees it.
#[derive(Clone)]
pub struct Desk {
    pub address: SocketAddr,
    pub token: String,
}

impl Desk {
    /// With the first token of a site.
    pub fn first(site: &Site) -> Desk {
        let token = std::fs::read_to_string(site.data().join("management-token")).unwrap().trim().to_owned();
        Desk { address: site.public, token }
    }

    /// With a token that `pixelgate token create` makes.
    pub fn made(site: &Site, arguments: &[&str]) -> Desk {
        let output = site.run(&[&["token", "create"], arguments].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Desk { address: site.public, token: String::from_utf8(output.stdout).unwrap().trim().to_owned() }
    }

    /// The same token elsewhere.
    pub fn at(&self, site: &Site) -> Desk {
        Desk { address: site.public, token: self.token.clone() }
    }

    /// One request, with further header lines.
    pub fn send(&self, method: &str, target: &str, lines: &[&str], body: &str) -> Reply {
        let mut client = Client::connect(self.address).unwrap();
        let token = &self.token;
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: gateway.test\r\nAuthorization: OAuth {token}\r\n");
        for line in lines {
            head.push_str(&format!("{line}\r\n"));
        }
        if !body.is_empty() {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        client.send(format!("{head}\r\n{body}").as_bytes()).unwrap();
        if method != "HEAD" {
            return client.reply().unwrap();
        }
        let (status, headers) = client.head().unwrap();
        Reply { status, headers, body: Vec::new() }
    }

    pub fn get(&self, target: &str) -> Reply {
        self.send("GET", target, &[], "")
    }

    pub fn form(&self, method: &str, target: &str, body: &str) -> Reply {
        self.send(method, target, &[&format!("Content-Type: {FORM}")], body)
    }

    /// Creates a pixel of ad account 9; its id.
    pub fn create(&self, name: &str) -> String {
        self.create_in("9", name)
    }

    pub fn create_in(&self, account: &str, name: &str) -> String {
        let reply = self.form("POST", "/offsitepixels", &format!("fb_ad_account_id={account}&name={name}&tag=LEAD"));
        assert_eq!(reply.status, 200, "{reply:?}");
        value(&reply)["id"].as_str().unwrap().to_owned()
    }

    pub fn put(&self, id: &str, form: &str) -> Reply {
        self.form("PUT", &format!("/offsitepixels/{id}"), form)
    }

    pub fn delete(&self, id: &str) -> Reply {
        self.send("DELETE", &format!("/offsitepixels/{id}"), &[], "")
    }

    pub fn single(&self, id: &str) -> Value {
        let reply = self.get(&format!("/offsitepixels/{id}"));
        assert_eq!(reply.status, 200, "{reply:?}");
        value(&reply)
    }

    /// Names of ad account 9's list; `query` goes on behind it.
    pub fn names(&self, query: &str) -> Vec<String> {
        let reply = self.get(&format!("/offsitepixels?fb_ad_account_id=9{query}"));
        assert_eq!(reply.status, 200, "{reply:?}");
        value(&reply).as_array().unwrap().iter().map(|pixel| pixel["name"].as_str().unwrap().to_owned()).collect()
    }
}

pub fn value(reply: &Reply) -> Value {
    serde_json::from_slice(&reply.body).unwrap()
}

/// `status type param` of an error, whose whole shape is checked.
pub fn fault(reply: &Reply) -> String {
    let json = value(reply);
    let error = json["error"].as_object().unwrap_or_else(|| panic!("no error: {reply:?}"));
    assert!(json.as_object().unwrap().len() == 1 && !error["message"].as_str().unwrap().is_empty(), "{json}");
    assert!(error.keys().all(|key| ["type", "message", "param"].contains(&&**key)), "{json}");
    assert_eq!(reply.header("content-type"), Some("application/json; charset=utf-8"));
    assert_eq!(reply.header("cache-control"), Some("no-cache"));
    let param = error.get("param").map_or("-", |param| param.as_str().unwrap());
    format!("{} {} {param}", reply.status, error["type"].as_str().unwrap())
}

/// How an event of an id is taken: status, and reason or warning.
pub fn event(site: &Site, id: &str) -> (u16, Option<String>) {
    let reply = Client::connect(site.public).unwrap().get(&format!("/offsite_event.php?id={id}")).unwrap();
    let word = reply.reason().or(reply.header("x-pixelgate-warning")).map(str::to_owned);
    (reply.status, word)
}

pub fn accepted(site: &Site, id: &str) -> bool {
    event(site, id) == (200, None)
}

pub fn refused(site: &Site, id: &str, reason: &str) -> bool {
    event(site, id) == (404, Some(reason.to_owned()))
}
