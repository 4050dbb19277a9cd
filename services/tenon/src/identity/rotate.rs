//! `tenon identity rotate`: one step of a rotation, and waiting for those who follow it.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget};
use mesh_identity::{Svid, TrustBundle};
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::CertificateDer;
use tenon_proto::identity::v1::{
    Instance, RenewRequest, RotateRequest, RotateResponse, identity_client::IdentityClient, rotate_request::Step,
};
use tokio::time::{Instant, sleep};
use tonic::{Code, transport::Channel};
use zeroize::Zeroizing;

use crate::{
    cli::{Rotate, RotateArgs, RotateRoot},
    failure::{Answer, Failure, chain},
    operator::{Mesh, Role, files},
    output::{Output, rfc3339},
};

/// Between two questions while something is waited for.
const POLL: Duration = Duration::from_millis(250);

/// Does the step, waits as long as was asked for, and prints how things stand. No when the step was not done, or not
/// everybody followed it within the time.
///
/// # Errors
/// No mesh, or the identity service failed.
pub async fn run(command: Rotate) -> Result<Answer, Failure> {
    let (step, args) = step(command);
    let mesh = Mesh::find(&args.mesh.data)?;
    let rotation = Rotation { mesh: &mesh, step, until: Instant::now() + args.wait, bar: bar() };
    let mut answer = rotation.take_step().await?;
    let mut yes = answer.done;
    if answer.done {
        follow(&mesh, &answer).await?;
        (answer, yes) = rotation.followed(answer, !args.wait.is_zero()).await?;
    }
    rotation.bar.finish_and_clear();
    report(&args, step, &answer)?;
    Ok(yes.into())
}

fn step(command: Rotate) -> (Step, RotateArgs) {
    match command {
        Rotate::Root(RotateRoot { common, prepare: true, .. }) => (Step::RootPrepare, common),
        Rotate::Root(RotateRoot { common, activate: true, .. }) => (Step::RootActivate, common),
        Rotate::Root(RotateRoot { common, retire: true, .. }) => (Step::RootRetire, common),
        // The command line has one of the four.
        Rotate::Root(RotateRoot { common, .. }) => (Step::RootAbandon, common),
        Rotate::Issuing(args) => (Step::Issuing, args.common),
        Rotate::Keys(args) => (Step::AsapKeys, args.common),
        Rotate::Status(args) => (Step::Unspecified, args.common),
    }
}

/// What everybody comes to hold after a step, in the words of the answers. Of a status that is everything.
fn brings(step: Step) -> &'static [&'static str] {
    match step {
        Step::Unspecified => &["trust-bundle", "root", "svid", "asap-key"],
        Step::RootPrepare | Step::RootRetire | Step::RootAbandon => &["trust-bundle"],
        Step::RootActivate => &["root"],
        Step::Issuing => &["svid"],
        Step::AsapKeys => &["asap-key"],
    }
}

/// Drawn on standard error, and only when that is a terminal.
fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

struct Rotation<'a> {
    mesh: &'a Mesh,
    step: Step,
    until: Instant,
    bar: ProgressBar,
}

impl Rotation<'_> {
    /// The step, tried again while live instances are waited for and there is time left.
    async fn take_step(&self) -> Result<RotateResponse, Failure> {
        loop {
            let answer = self.ask(self.step).await?;
            if answer.done || answer.waiting.is_empty() || Instant::now() + POLL > self.until {
                return Ok(answer);
            }
            self.wait(answer.waiting.len()).await;
        }
    }

    /// Waits until nobody lacks what the step brings, if that is wanted; whether it came to that. A status that is not
    /// waited for says no when somebody lacks something.
    async fn followed(&self, answer: RotateResponse, wait: bool) -> Result<(RotateResponse, bool), Failure> {
        let mut answer = answer;
        loop {
            let done = answer.done && !answer.waiting.iter().any(|instance| lacks(instance, brings(self.step)));
            let patient = wait && Instant::now() + POLL <= self.until;
            if done || !patient {
                return Ok((answer, done || !(wait || self.step == Step::Unspecified)));
            }
            self.wait(answer.waiting.len()).await;
            answer = self.ask(Step::Unspecified).await?;
        }
    }

    async fn wait(&self, instances: usize) {
        self.bar.set_message(format!("waiting for {instances} instances"));
        sleep(POLL).await;
    }

    async fn ask(&self, step: Step) -> Result<RotateResponse, Failure> {
        let answer = client(self.mesh).rotate(RotateRequest { step: step.into() }).await;
        answer.map(tonic::Response::into_inner).map_err(|status| {
            if status.code() == Code::Aborted {
                return Failure::new(format!("nothing was rotated: {}", status.message()))
                    .next("see how things stand with `tenon identity rotate status`");
            }
            self.mesh.failure(Role::Identity, "the rotation failed", &status)
        })
    }
}

fn client(mesh: &Mesh) -> IdentityClient<Channel> {
    IdentityClient::new(mesh.channel(Role::Identity)).max_decoding_message_size(super::LARGEST_LIST)
}

fn lacks(instance: &Instance, what: &[&str]) -> bool {
    instance.lacks.iter().any(|lack| what.contains(&lack.as_str()))
}

/// Has the operator trust what the mesh now trusts, with a certificate of the issuing CA that now signs, here and in the
/// data folder: the next command must be able to connect.
async fn follow(mesh: &Mesh, answer: &RotateResponse) -> Result<(), Failure> {
    let broken = |error: &dyn std::error::Error| {
        Failure::new(format!("the step is done, but the operator's credentials cannot follow it: {}", chain(error)))
            .next("`tenon up` renews them within a second while it runs")
    };
    let Some(bundle) = answer.trust_bundle.as_ref() else { return Ok(()) };
    let bundle = TrustBundle::from_proto(bundle).map_err(|error| broken(&error))?;
    let identity = mesh.identity();
    let authority = bundle.rotation().issuing_authority;
    if bundle.roots() == identity.bundle().roots() && authority == identity.svid().issuing_authority() {
        return Ok(());
    }
    identity.set_bundle(bundle).map_err(|error| broken(&error))?;
    if authority != identity.svid().issuing_authority() {
        let key = KeyPair::generate().map_err(|error| broken(&error))?;
        let csr = CertificateParams::default().serialize_request(&key).map_err(|error| broken(&error))?;
        let renew = RenewRequest { csr: csr.der().to_vec().into(), ..RenewRequest::default() };
        let what = "the step is done, but the operator has no new certificate";
        let issued = client(mesh).renew(renew).await;
        let issued = issued.map_err(|status| mesh.failure(Role::Identity, what, &status))?.into_inner();
        let chain = issued.chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let svid = Svid::from_der(chain, Zeroizing::new(key.serialize_der())).map_err(|error| broken(&error))?;
        identity.set_svid(svid).map_err(|error| broken(&error))?;
    }
    files::write(mesh.data(), identity)
}

fn report(args: &RotateArgs, step: Step, answer: &RotateResponse) -> Result<(), Failure> {
    let bundle = answer.trust_bundle.as_ref().and_then(|bundle| TrustBundle::from_proto(bundle).ok());
    let mut out = Output::stdout(args.output.output);
    if out.is_json() {
        out.json(&json(answer, bundle.as_ref()))?;
        return out.flush();
    }
    if !answer.message.is_empty() {
        out.line(&answer.message)?;
    }
    out.line(&format!("root rotation  {}", answer.root_rotation))?;
    if let Some(bundle) = &bundle {
        let roots = bundle.roots().len();
        let plural = if roots == 1 { "" } else { "s" };
        out.line(&format!("trust bundle   sequence {}, {roots} root{plural}", bundle.rotation().sequence))?;
        out.line(&format!("SHA-256        {}", bundle.pin()))?;
        if let Some(authority) = bundle.rotation().issuing_authority {
            out.line(&format!("issuing CA     {}", hex(&authority)))?;
        }
        if bundle.rotation().rekey_created_before > 0 {
            let since = rfc3339(bundle.rotation().rekey_created_before);
            out.line(&format!("ASAP keys      all of before {since} are replaced"))?;
        }
    }
    if answer.waiting.is_empty() && answer.done {
        out.line("waiting for    nobody")?;
    } else if !answer.waiting.is_empty() {
        out.line("")?;
        out.table(&["service", "instance", "lacks", "seen", "certificate ends"], &rows(&answer.waiting))?;
    }
    if let Some(next) = next(step, answer) {
        out.line("")?;
        out.line(&format!("Next: {next}"))?;
    }
    out.flush()
}

fn rows(waiting: &[Instance]) -> Vec<Vec<String>> {
    let row = |one: &Instance| {
        let (seen, ends) = (rfc3339(one.seen_unix_seconds), rfc3339(one.svid_not_after_unix_seconds));
        vec![one.service.clone(), one.instance.clone(), one.lacks.join(", "), seen, ends]
    };
    waiting.iter().map(row).collect()
}

/// What an operator does after this.
fn next(step: Step, answer: &RotateResponse) -> Option<&'static str> {
    let waiting = !answer.waiting.is_empty();
    match (step, answer.root_rotation.as_str()) {
        _ if !answer.done && waiting => {
            Some("start those instances again, or wait until their certificates have ended; --wait 60s tries again")
        }
        (Step::Issuing | Step::AsapKeys, _) => waiting.then_some("tenon identity rotate status"),
        (_, "prepared") => Some("tenon identity rotate root --activate (or --abandon)"),
        (_, "activated") => Some("tenon identity rotate root --retire"),
        _ => None,
    }
}

fn json(answer: &RotateResponse, bundle: Option<&TrustBundle>) -> serde_json::Value {
    let rotation = bundle.map(TrustBundle::rotation);
    let waiting = answer.waiting.iter().map(|one| {
        serde_json::json!({
            "service": one.service,
            "instance": one.instance,
            "lacks": one.lacks,
            "seen": rfc3339(one.seen_unix_seconds),
            "certificateEnds": rfc3339(one.svid_not_after_unix_seconds),
        })
    });
    serde_json::json!({
        "done": answer.done,
        "message": answer.message,
        "rootRotation": answer.root_rotation,
        "sequence": rotation.map(|rotation| rotation.sequence),
        "roots": bundle.map(|bundle| bundle.roots().len()),
        "trustBundleSha256": bundle.map(TrustBundle::pin),
        "issuingAuthority": rotation.and_then(|rotation| rotation.issuing_authority).map(|hash| hex(&hash)),
        "rekeyCreatedBefore": rotation.map(|rotation| rfc3339(rotation.rekey_created_before)),
        "waiting": waiting.collect::<Vec<_>>(),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_waited_for_by_what_it_brings_alone() {
        let lacking = |what: &str| Instance { lacks: vec![what.to_owned()], ..Instance::default() };
        assert!(lacks(&lacking("root"), brings(Step::RootActivate)));
        assert!(!lacks(&lacking("asap-key"), brings(Step::RootActivate)));
        for what in ["trust-bundle", "root", "svid", "asap-key"] {
            assert!(lacks(&lacking(what), brings(Step::Unspecified)), "{what}");
        }
    }

    #[test]
    fn the_next_step_is_told() {
        let answer = |done, rotation: &str, waiting| RotateResponse {
            done,
            root_rotation: rotation.to_owned(),
            waiting,
            ..RotateResponse::default()
        };
        let one = || vec![Instance::default()];
        assert!(next(Step::RootPrepare, &answer(true, "prepared", one())).unwrap().contains("--activate"));
        assert!(next(Step::RootActivate, &answer(false, "prepared", one())).unwrap().contains("--wait"));
        assert!(next(Step::RootActivate, &answer(true, "activated", one())).unwrap().contains("--retire"));
        assert_eq!(next(Step::RootRetire, &answer(true, "none", Vec::new())), None);
    }
}
