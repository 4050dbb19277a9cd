//! The flow record: who called what, and what was decided. `tenon policy flows` shows it, `diff` and `suggest` read it.

use std::{fs, path::Path, time::Duration};

use ::policy::json;
use serde_json::{Value, json};
use tenon_proto::policy::v1::{Flow, FlowTotal, FlowsRequest, FlowsResponse, flow::Decision};

use super::{
    client,
    words::{call, length, moment},
};
use crate::{
    cli::{PolicyFlows, RecordArgs},
    failure::{Answer, Failure},
    operator::{Mesh, Role},
    output::Output,
};

/// Runs the command.
///
/// # Errors
/// No mesh, or no answer.
pub async fn run(args: PolicyFlows) -> Result<Answer, Failure> {
    let mesh = Mesh::find(&args.mesh.data)?;
    let record = Record::ask(&mesh, args.since, args.service.unwrap_or_default()).await?;
    let mut out = Output::stdout(args.output.output);
    if out.is_json() {
        out.json(&record.json())?;
    } else {
        let rows: Vec<_> = record.flows.iter().map(row).collect();
        out.table(&["call", "decision", "reason", "count", "first", "last"], &rows)?;
        out.line(&format!("on {}", record.words()))?;
    }
    out.flush()?;
    Ok(Answer::Yes)
}

fn row(total: &FlowTotal) -> Vec<String> {
    let flow = total.flow.clone().unwrap_or_default();
    vec![
        call(&flow.caller, &flow.service, &flow.path),
        json::verdict(&flow).to_owned(),
        if flow.reason.is_empty() { "-".to_owned() } else { flow.reason },
        flow.count.to_string(),
        moment(total.first_unix_seconds),
        moment(total.last_unix_seconds),
    ]
}

/// What was recorded, and how much of the time.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Record {
    pub flows: Vec<FlowTotal>,
    /// Unix seconds; 0: nothing was ever recorded.
    pub from: i64,
    pub until: i64,
    pub silent_hours: u32,
}

impl Record {
    /// Asks the policy service, or reads what it once answered.
    ///
    /// # Errors
    /// No answer; or the file is none.
    pub async fn take(mesh: &Mesh, args: &RecordArgs, service: &str) -> Result<Self, Failure> {
        match &args.flows {
            None => Self::ask(mesh, args.since, service.to_owned()).await,
            Some(file) => Self::read(file),
        }
    }

    async fn ask(mesh: &Mesh, since: Option<Duration>, service: String) -> Result<Self, Failure> {
        let now = mesh_identity::clock::unix_seconds();
        let since = since.map_or(0, |since| i64::try_from(now.saturating_sub(since.as_secs())).unwrap_or(0));
        let answer =
            client(mesh.channel(Role::Policy)).flows(FlowsRequest { since_unix_seconds: since, service }).await;
        let answer = answer.map_err(|status| mesh.failure(Role::Policy, "cannot ask for the flow record", &status))?;
        let FlowsResponse { flows, from_unix_seconds, until_unix_seconds, silent_hours } = answer.into_inner();
        // The record may begin earlier than what was asked for.
        let from = if from_unix_seconds == 0 { 0 } else { from_unix_seconds.max(since) };
        Ok(Self { flows, from, until: until_unix_seconds, silent_hours })
    }

    pub fn read(file: &Path) -> Result<Self, Failure> {
        let shown = file.display();
        let next = "write one with `tenon policy flows -o json > FILE`";
        let text = fs::read(file).map_err(|error| Failure::new(format!("cannot read {shown}: {error}")).next(next))?;
        let json = serde_json::from_slice(&text)
            .map_err(|error| Failure::new(format!("{shown} is not JSON: {error}")).next(next))?;
        Self::from_json(&json)
            .map_err(|problem| Failure::new(format!("{shown} is not a flow record: {problem}")).next(next))
    }

    /// As DESIGN §8 and `tenon policy flows -o json` have it.
    pub fn json(&self) -> Value {
        json!({
            "from": json::moment(self.from),
            "until": json::moment(self.until),
            "silentHours": self.silent_hours,
            "flows": self.flows.iter().map(json::flow_total).collect::<Vec<_>>(),
        })
    }

    fn from_json(json: &Value) -> Result<Self, String> {
        let flows = json["flows"].as_array().ok_or("it has no list `flows`")?;
        let flow =
            |(index, flow): (usize, &Value)| flow_of(flow).map_err(|problem| format!("flow {}: {problem}", index + 1));
        Ok(Self {
            flows: flows.iter().enumerate().map(flow).collect::<Result<_, _>>()?,
            from: time(&json["from"], "from")?,
            until: time(&json["until"], "until")?,
            silent_hours: json["silentHours"].as_u64().and_then(|hours| hours.try_into().ok()).unwrap_or_default(),
        })
    }

    /// `12 days 3 hours of record, 2 hours silent`.
    pub fn words(&self) -> String {
        if self.from == 0 {
            return "no record: nothing was ever recorded".to_owned();
        }
        let silent = match self.silent_hours {
            0 => "none of it silent".to_owned(),
            hours => format!("{} silent", length(u64::from(hours) * 3_600)),
        };
        format!("{} of record, {silent}", length(u64::try_from(self.until - self.from).unwrap_or(0)))
    }
}

fn flow_of(json: &Value) -> Result<FlowTotal, String> {
    let text = |key: &str| json[key].as_str().map(str::to_owned).ok_or_else(|| format!("`{key}` is missing"));
    let decision = match json["decision"].as_str() {
        Some("ALLOWED") => Decision::Allowed,
        Some("REFUSED") => Decision::Refused,
        Some("AUDITED") => Decision::Audited,
        _ => return Err("`decision` is none of ALLOWED, REFUSED and AUDITED".to_owned()),
    };
    let flow = Flow {
        caller: text("caller")?,
        service: text("service")?,
        path: text("path")?,
        decision: decision.into(),
        reason: text("reason").unwrap_or_default(),
        count: json["count"].as_u64().ok_or("`count` is no number")?,
    };
    Ok(FlowTotal {
        flow: Some(flow),
        first_unix_seconds: time(&json["first"], "first")?,
        last_unix_seconds: time(&json["last"], "last")?,
    })
}

fn time(json: &Value, key: &str) -> Result<i64, String> {
    match json {
        Value::Null => Ok(0),
        Value::String(text) => {
            let parsed: Result<jiff::Timestamp, _> = text.parse();
            parsed.map(jiff::Timestamp::as_second).map_err(|_| format!("`{key}` is no moment: {text}"))
        }
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => Err(format!("`{key}` is no moment")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_was_written_is_read_back() {
        let flow = |decision: Decision, reason: &str| Flow {
            caller: "wiki".into(),
            service: "media".into(),
            path: "/media.v1.Media/Get".into(),
            decision: decision.into(),
            reason: reason.into(),
            count: 7,
        };
        let total =
            |flow| FlowTotal { flow: Some(flow), first_unix_seconds: 1_700_000_000, last_unix_seconds: 1_700_003_600 };
        let record = Record {
            flows: vec![
                total(flow(Decision::Allowed, "")),
                total(flow(Decision::Refused, "PATH_NOT_ALLOWED")),
                total(flow(Decision::Audited, "TENANT_REQUIRED")),
            ],
            from: 1_700_000_000,
            until: 1_700_010_000,
            silent_hours: 2,
        };
        assert_eq!(Record::from_json(&record.json()), Ok(record.clone()));
        assert_eq!(record.words(), "2 hours of record, 2 hours silent");
        assert_eq!(Record::from_json(&Record::default().json()), Ok(Record::default()));
        assert_eq!(Record::default().words(), "no record: nothing was ever recorded");
    }

    #[test]
    fn what_is_no_record_says_where() {
        for (json, says) in [
            (json!({}), "no list `flows`"),
            (json!({"flows": [{}]}), "flow 1: `decision`"),
            (json!({"flows": [{"decision": "ALLOWED", "caller": "a", "service": "b", "path": "/c/d"}]}), "`count`"),
            (json!({"flows": [], "from": "yesterday"}), "`from` is no moment: yesterday"),
        ] {
            let problem = Record::from_json(&json).unwrap_err();
            assert!(problem.contains(says), "{problem}");
        }
    }
}
