//! docs/asyncapi.json says what the program does: its references lead somewhere, its topics are the config's, its
//! messages are the schemas'.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::gateway::{binary, output};

fn docs() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/docs"))
}

fn read(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(docs().join(name)).unwrap()).unwrap()
}

/// Calls with each reference of a document.
fn each_reference(value: &Value, take: &mut impl FnMut(&str)) {
    match value {
        Value::Object(members) => {
            if let Some(reference) = members.get("$ref") {
                take(reference.as_str().unwrap());
            }
            members.values().for_each(|member| each_reference(member, take));
        }
        Value::Array(items) => items.iter().for_each(|item| each_reference(item, take)),
        _ => {}
    }
}

#[test]
fn references_lead_somewhere_and_topics_and_schemas_are_the_program_s() {
    let document = read("asyncapi.json");
    let mut schemas = 0;
    each_reference(&document, &mut |reference| match reference.strip_prefix('#') {
        Some(pointer) => assert!(document.pointer(pointer).is_some(), "{reference}"),
        None => {
            schemas += 1;
            let schema = read(reference);
            let name = schema["properties"]["schema"]["const"].as_str().unwrap();
            let messages = document["components"]["messages"].as_object().unwrap();
            let message = messages.values().find(|message| message["payload"]["$ref"] == reference).unwrap();
            assert_eq!(message["name"], name);
        }
    });
    let text = document.to_string();
    let files: Vec<String> = fs::read_dir(docs().join("schema"))
        .unwrap()
        .map(|file| format!("schema/{}", file.unwrap().file_name().into_string().unwrap()))
        .collect();
    // The other encodings are alternatives of a message, which the document can only name.
    assert!(files.iter().all(|file| text.contains(file.as_str())), "{files:?}");
    let json = files.iter().filter(|file| file.ends_with(".json")).count();
    assert_eq!(schemas, json, "each schema is a message's");

    let mut command = binary();
    command.arg("config");
    let text = String::from_utf8(output(command).stdout).unwrap();
    let config: toml::Table = text.parse().unwrap();
    let topic = |channel: &str| document["channels"][channel]["address"].as_str().unwrap().to_owned();
    for channel in ["events", "rejected"] {
        assert_eq!(config["kafka"][format!("{channel}_topic")].as_str(), Some(topic(channel).as_str()));
    }
    assert_eq!(config["kafka"]["progress_topic"].as_str(), Some(""), "without a default");
    let page = fs::read_to_string(docs().join("consumers.md")).unwrap();
    assert!(page.contains(&format!("kafka.progress_topic = \"{}\"", topic("progress"))));
}

/// AsyncAPI's own parser, by its package registry.
#[cfg(feature = "e2e")]
mod official {
    use std::process::Command;

    use super::super::tools::node;
    use super::*;

    /// Prints what is an error, and the topics.
    const PROGRAM: &str = "const { Parser, fromFile } = require('@asyncapi/parser');\n\
        fromFile(new Parser(), process.argv[2]).parse().then(({ document, diagnostics }) => {\n\
        diagnostics.filter(d => d.severity < 2).forEach(d => console.log(d.code, d.path.join('.'), d.message));\n\
        console.log('topics', document ? document.channels().all().map(c => c.address()).sort().join(' ') : 'none');\n\
        });\n";

    fn verdict(document: &Path) -> String {
        let parser = node("@asyncapi/parser@3.4.0");
        fs::write(parser.join("check.js"), PROGRAM).unwrap();
        let output = Command::new("node").current_dir(&parser).arg("check.js").arg(document).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    #[test]
    fn the_official_parser_has_no_complaint_and_would_have_one() {
        let good = docs().join("asyncapi.json");
        assert_eq!(verdict(&good), "topics pixelgate.events pixelgate.progress pixelgate.rejected\n");
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let bad = directory.path().join("asyncapi.json");
        fs::write(&bad, fs::read_to_string(good).unwrap().replace("\"action\": \"send\"", "\"action\": \"shout\""))
            .unwrap();
        assert!(verdict(&bad).contains("topics none"));
    }
}
