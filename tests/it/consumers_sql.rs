//! The queries of docs/consumers.md, run in ClickHouse (as `chdb`), Spark and Flink on what a real gateway published:
//! all three make the same figures of it, which are those of the events that were sent.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::consumers::{CONVERSIONS, EVENTS, LATE, Published};
use super::document::{block, requirements, words};
use super::running::directory;
use super::{maven, python};

/// What a command says on stdout.
fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Rows as the constant has them: texts, and nothing for what is null.
fn assert_conversions(rows: &[Vec<String>]) {
    let expected = CONVERSIONS.map(|(pixel, event, currency, count, total)| [pixel, event, currency, count, total]);
    assert_eq!(rows, expected, "as sent");
}

fn conversions_of(rows: &[Value]) -> Vec<Vec<String>> {
    let text = |value: &Value| match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let columns = ["pixel_id", "event_name", "currency", "conversions", "total"];
    rows.iter().map(|row| columns.iter().map(|column| text(&row[column])).collect()).collect()
}

/// Runs statements in a ClickHouse of its own; prints what the last of each text answers, a line of JSON a row.
const CHDB: &str = r#"
import sys
import chdb.session

database = chdb.session.Session()
database.query("CREATE DATABASE test")
database.query("USE test")
for name in sys.argv[1:]:
    for statement in open(name).read().split(";"):
        if statement.strip():
            answer = database.query(statement, "JSONEachRow")
    print(answer, end="")
    print("--")
"#;

#[test]
fn clickhouse_takes_the_export_with_exact_values_and_counts_each_conversion_once() {
    let published = Published::shared();
    let interpreter = python::with("clickhouse", &requirements("pip-clickhouse"));
    let directory = directory();
    let put = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    // Twice, as after a crash of whoever fills the table; and the second time as a later version writes them.
    put("events.ndjson", &format!("{}\n{}\n", published.lines.join("\n"), published.newer.join("\n")));
    put("run.py", CHDB);
    let names = ["clickhouse-table", "clickhouse-import", "clickhouse-conversions", "clickhouse-late"];
    names.iter().for_each(|name| put(name, &block(name)));
    // And all once more, five hours later, which makes none of them late.
    let again = "INSERT INTO events (* EXCEPT(earliest)) \
                 SELECT * EXCEPT(earliest) REPLACE(inserted_at + INTERVAL 5 HOUR AS inserted_at) FROM events";
    put("again", again);
    let fine = "SELECT countIf(value IS NULL) AS without, count() AS all, toString(max(value)) AS largest, \
                toString(min(value)) AS smallest, countIf(occurred_at IS NOT NULL) AS dated, countIf(test) AS trials, \
                countIf(params['cd[ids]'] != '') AS with_ids FROM events FINAL";
    put("fine", fine);
    // The Kafka engine needs a server: of its statements the syntax is checked, and that its columns are the table's.
    let kafka = block("clickhouse-kafka");
    let parsed: Vec<String> =
        kafka.split(';').filter(|text| !text.trim().is_empty()).map(|text| format!("EXPLAIN AST {text}")).collect();
    assert_eq!(parsed.len(), 2);
    put("kafka", &parsed.join(";"));
    let columns = |text: &str, end: &str| {
        let (_, rest) = text.split_once("record_id").unwrap();
        rest.split_once(end).unwrap().0.split_whitespace().collect::<String>()
    };
    assert_eq!(columns(&block(names[0]), "inserted_at"), columns(&kafka, ") ENGINE") + ",");

    let mut command = Command::new(interpreter);
    command
        .current_dir(directory.path())
        .arg("run.py")
        .args(&names[..2])
        .arg("again")
        .args(&names[2..])
        .args(["fine", "kafka"]);
    let text = said(&mut command);
    let answers: Vec<Vec<Value>> = text
        .split("--\n")
        .map(|answer| answer.lines().map(|line| serde_json::from_str(line).unwrap_or_default()).collect())
        .collect();
    assert_conversions(&conversions_of(&answers[3]));
    assert_late_rows(&answers[4]);
    let fine = &answers[5][0];
    assert_eq!((number(&fine["all"]), number(&fine["without"])), (EVENTS as u64, 2), "{text}");
    assert_eq!(
        (fine["largest"].as_str(), fine["smallest"].as_str()),
        (Some("999999999999999.12345678"), Some("-0.00000001"))
    );
    assert_eq!([&fine["dated"], &fine["trials"], &fine["with_ids"]].map(number), [1, 1, 1], "{text}");
}

/// The page's queries for lines in a file, on these; all of them are there twice, as after a crash of who writes them.
pub fn assert_lines(lines: &[&str]) {
    let interpreter = python::with("clickhouse", &requirements("pip-clickhouse"));
    let directory = directory();
    let put = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    put("conversions.ndjson", &format!("{0}\n{0}\n", lines.join("\n")));
    put("run.py", CHDB);
    let names = ["lines-conversions", "lines-late"];
    names.iter().for_each(|name| put(name, &block(name)));
    let text = said(Command::new(interpreter).current_dir(directory.path()).arg("run.py").args(names));
    let answers: Vec<Vec<Value>> = text
        .split("--\n")
        .map(|answer| answer.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
        .collect();
    assert_conversions(&conversions_of(&answers[0]));
    assert_late_rows(&answers[1]);
}

/// 64-bit integers are numbers or, as JavaScript likes them, texts.
fn number(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_else(|| panic!("no number: {value}"))
}

/// Prints what the page's program found, a line a row; as text, since numbers of JSON are not exact here.
const ROWS: &str = r#"
import json
for mark, rows in ("ROW", conversions), ("LATE", late):
    for row in rows.collect():
        print(mark, json.dumps({name: None if value is None else str(value) for name, value in row.asDict().items()}))
"#;

/// Asks the same of the views that the page makes by SQL alone, instead of the program's.
const SPARK_DDL: &str = r#"
spark.catalog.dropTempView("events")
for statement in open("events.sql").read().split(";"):
    if statement.strip():
        spark.sql(statement)
for row in spark.sql(open("query.sql").read()).collect():
    print("DDL", json.dumps({name: None if value is None else str(value) for name, value in row.asDict().items()}))
"#;

/// The same of rows as ClickHouse has them.
fn assert_late_rows(rows: &[Value]) {
    assert_late(&rows.iter().map(|day| (number(&day["late"]), number(&day["latest_s"]))).collect::<Vec<_>>());
}

/// How many were late, by day, and by how many seconds at most: all of those that were sent two hours before.
fn assert_late(days: &[(u64, u64)]) {
    assert_eq!(days.iter().map(|(late, _)| late).sum::<u64>(), LATE as u64, "{days:?}");
    assert!(days.iter().all(|(_, seconds)| (7_000..8_000).contains(seconds)), "{days:?}");
}

#[test]
fn spark_counts_each_conversion_once_with_exact_sums_also_of_records_of_a_later_version() {
    let published = Published::shared();
    let interpreter = python::with("spark", &requirements("pip-spark"));
    let directory = directory();
    let submit = words("spark-submit");
    assert_eq!(submit[..2], ["spark-submit", "--packages"]);
    let jars = jar_list(&maven::jars("spark", &submit[2..3]));
    let adapt = |name: &str| published.adapt(&block(name)).replace(published.topic, published.newer_topic);
    let program = adapt("spark") + ROWS + SPARK_DDL;
    fs::write(directory.path().join("events.sql"), adapt("spark-ddl")).unwrap();
    let query = program.split("spark.sql(\"\"\"").nth(1).and_then(|rest| rest.split("\"\"\"").next()).unwrap();
    fs::write(directory.path().join("query.sql"), query).unwrap();
    fs::write(directory.path().join(&submit[3]), program).unwrap();
    let options = format!(
        "--master local[1] --conf spark.ui.enabled=false --conf spark.sql.shuffle.partitions=1 \
         --conf spark.driver.bindAddress=127.0.0.1 --conf spark.driver.host=127.0.0.1 --jars {} pyspark-shell",
        jars.join(",")
    );
    let mut command = Command::new(interpreter);
    command.current_dir(directory.path()).arg(&submit[3]).env("PYSPARK_SUBMIT_ARGS", options);
    let text = said(&mut command);
    // The progress bar has no line of its own.
    let rows = |mark: &str| -> Vec<Value> {
        text.lines().filter_map(|line| Some(serde_json::from_str(line.split_once(mark)?.1).unwrap())).collect()
    };
    assert_conversions(&conversions_of(&rows("ROW ")));
    assert_eq!(rows("DDL "), rows("ROW "), "the views of SQL alone give the same");
    let late = rows("LATE ");
    assert_late(&late.iter().map(|day| (number(&day["late"]), number(&day["latest_s"]))).collect::<Vec<_>>());
}

/// What the SQL client of Flink needs beside what the page's reader has in a distribution of Flink.
const FLINK: &str = "2.0.0";
const FLINK_KAFKA: &str = "org.apache.flink:flink-sql-connector-kafka:4.0.1-2.0";

#[test]
fn flink_counts_each_conversion_once_with_exact_sums() {
    let published = Published::shared();
    let parts = [
        "sql-client",
        "sql-gateway",
        "clients",
        "table-planner-loader",
        "table-runtime",
        "json",
        "connector-base",
        "python",
    ];
    let mut artifacts: Vec<String> =
        parts.iter().map(|part| format!("org.apache.flink:flink-{part}:{FLINK}")).collect();
    artifacts.push(FLINK_KAFKA.to_owned());
    let jars = jar_list(&maven::jars(&format!("flink-{FLINK}"), &artifacts));
    let directory = directory();
    fs::write(directory.path().join("config.yaml"), "execution.target: local\n").unwrap();
    let settings = "SET 'execution.runtime-mode' = 'batch';\nSET 'sql-client.execution.result-mode' = 'tableau';\n";
    let queries = settings.to_owned() + &published.adapt(&(block("flink") + "\n" + &block("flink-late")));
    fs::write(directory.path().join("query.sql"), queries.replace(published.topic, published.newer_topic)).unwrap();
    let mut command = Command::new("java");
    command.args(["-Xmx768m", "-XX:+UseSerialGC"]);
    for package in ["java.lang", "java.util", "java.net", "java.util.concurrent"] {
        command.arg(format!("--add-opens=java.base/{package}=ALL-UNNAMED"));
    }
    command.arg("-cp").arg(jars.join(":")).arg("org.apache.flink.table.client.SqlClient");
    command.current_dir(directory.path()).env("FLINK_CONF_DIR", directory.path());
    let text = said(command.args(["embedded", "-hist", "history", "-f", "query.sql"]));
    let rows: Vec<Vec<String>> = text
        .lines()
        .filter(|line| line.starts_with('|') && !line.contains("pixel_id") && !line.contains("latest_s"))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().replace("<NULL>", "")).collect())
        .collect();
    let (conversions, late): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.len() == 5);
    assert!(!conversions.is_empty(), "{text}");
    assert_conversions(&conversions);
    assert_late(&late.iter().map(|day| (day[1].parse().unwrap(), day[2].parse().unwrap())).collect::<Vec<_>>());
}

fn jar_list(directory: &Path) -> Vec<String> {
    let files = fs::read_dir(directory).unwrap().map(|file| file.unwrap().path());
    let mut jars: Vec<String> = files.map(|path| path.display().to_string()).collect();
    jars.sort();
    jars
}
