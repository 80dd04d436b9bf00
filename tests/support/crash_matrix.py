"""Which journey reaches which crash point, and what is no crash point, and why.

``tests/fault/test_crash_catalogue.py`` compares this with the source: a
transaction that is in neither list fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_C: Final = "coordinator."
_N: Final = "node_agent."

# Transactions that change a store, with the journey that reaches them.
WRITES: Final[Mapping[str, str]] = {
    # the coordinator: jobs
    _C + "services.submission.submit_job": "a_job",
    _C + "services.jobs.cancel_job": "cancelled",
    _C + "services.deadlines._settle": "expired",
    _C + "services.collection.collect": "a_job",
    _C + "services.collection._set_apart": "a_quarantine",
    # sessions
    _C + "services.sessions.Sessions.begin": "coordinator_restarts",
    _C + "services.sessions.NodeSession._greet": "node_restarts",
    _C + "services.sessions.NodeSession._connect": "node_restarts",
    _C + "services.sessions.NodeSession._apply_batch": "a_job",
    _C + "services.sessions.NodeSession._exchange": "a_job",
    _C + "services.sessions.NodeSession._note_clock": "node_restarts",
    _C + "services.sessions.NodeSession._write_end": "node_restarts",
    # membership and certificates
    _C + "api.admin.AdminServicer.InviteNode.work": "membership",
    _C + "api.admin.AdminServicer.ConfirmNode.work": "membership",
    _C + "api.admin.AdminServicer.SuspendNode.work": "membership",
    _C + "api.admin.AdminServicer.ResumeNode.work": "membership",
    _C + "api.admin.AdminServicer.RevokeNode.work": "membership",
    _C + "api.admin.AdminServicer.ReconcileNode.work": "a_restored_node",
    _C + "api.admin.AdminServicer.WithdrawProposal.work": "membership",
    _C + "api.enrolment.EnrolmentServicer.Enrol.work": "membership",
    _C + "api.nodes.NodeServicer.RenewCertificate.work": "renewal",
    _C + "api.guard.node_authenticator.authenticate.work": "renewal",
    # trust, log, housekeeping
    _C + "services.trust.put_in_force": "publication",
    _C + "services.trust.keep_fresh.work": "coordinator_restarts",
    _C + "api.audit.AuditMethods.GetCheckpoint": "a_checkpoint",
    _C + "services.evidence.job_evidence": "evidence",
    _C + "bootstrap._loops.tidy": "coordinator_restarts",
    # Who lists the nodes also ends the invitations whose time is over.
    _C + "api.catalogue.CatalogueServicer.ListNodes": "node_restarts",
    # the agent: jobs
    _N + "link.session.Session._apply": "a_job",
    _N + "scheduling.Scheduler.step._start": "a_job",
    _N + "scheduling.Scheduler.step._mend": "a_lost_worker",
    _N + "scheduling.Scheduler.step._forget_messages": "a_broker_away",
    _N + "scheduling.Scheduler._pardon": "node_restarts",
    _N + "executions.Executions.claim.work": "a_job",
    _N + "executions.Executions.beat.work": "a_held_job",
    _N + "executions.Executions.finish.work": "a_job",
    _N + "spool.uploader.Uploader._mark": "a_job",
    # decisions of people
    _N + "airlock.gate.Airlock.decide": "released_by_a_person",
    _N + "approvals.Approvals._take.work": "approved_once",
    _N + "approvals.Approvals.decline.work": "declined",
    _N + "approvals.Approvals.revoke.work": "approved_once",
    # what operators do
    _N + "datasets.Datasets.add._register": "datasets",
    _N + "datasets.Datasets.remove.work": "datasets",
    _N + "policy.changes.PolicyChanges._record.work": "released_by_a_person",
    _N + "audit.trail.AuditTrail.erase.work": "an_erasure",
    # link, trust, log
    _N + "link.session.Session._attach": "node_restarts",
    _N + "link.daemon.Link._note": "misfits",
    _N + "trust.keeper.TrustKeeper._attempt": "publication",
    _N + "trust.keeper.TrustKeeper._refused.note": "misfits",
    _N + "audit.witness.LogWitness.hear": "a_job",
    _N + "audit.witness.LogWitness.accept_coordinator_log.work": "a_fork",
    _N + "link.session.Session._keep_acked": "a_job",
    _N + "retention.Retention.purge._tidy": "node_restarts",
}

# The same points on ways that another journey takes through them.
ALSO: Final[tuple[tuple[str, str], ...]] = (
    (_C + "services.sessions.NodeSession._apply_batch", "cancelled"),
    (_C + "services.sessions.NodeSession._apply_batch", "expired"),
    (_C + "services.sessions.NodeSession._apply_batch", "datasets"),
    (_C + "services.jobs.cancel_job", "cancelled_unseen"),
    (_N + "link.session.Session._apply", "cancelled"),
    (_N + "link.session.Session._apply", "cancelled_unseen"),
    (_N + "link.session.Session._apply", "expired"),
    (_N + "link.session.Session._apply", "a_restored_node"),
    (_N + "executions.Executions.finish.work", "cancelled"),
    (_N + "airlock.gate.Airlock.decide", "withheld_by_a_person"),
)

# Transactions that only read: a death around one is a death between two of the others. That they only read is checked.
READS: Final = frozenset(
    {
        _C + "api.admin.AdminServicer.ListPersons",
        _C + "api.admin.AdminServicer.ListProposals",
        _C + "api.audit.AuditMethods.ListAudit",
        _C + "api.audit.AuditMethods.ListAuditLeaves",
        _C + "api.audit.AuditMethods.ProveInclusion.work",
        _C + "api.audit.AuditMethods.ProveConsistency.work",
        _C + "api.catalogue.CatalogueServicer.ListAnalyses",
        _C + "api.catalogue.CatalogueServicer.GetAnalysis",
        _C + "api.catalogue.CatalogueServicer.ListDatasets",
        _C + "api.guard.people_authenticator.authenticate",
        _C + "services.jobs.view_job",
        _C + "services.jobs._view_still",
        _C + "services.jobs.list_jobs",
        _C + "services.jobs.job_result",
        _C + "services.evidence.summary_content",
        _C + "services.collection.admit",
        _C + "api.trust.TrustServicer.GetMetadata",
        _C + "api.trust.TrustServicer.GetTarget",
        _C + "store.federation.read_federation",
        _C + "services.trust.state_in_force",
        _C + "store.audit_check.verify_log",
        _C + "doctor._clock.page",
        _C + "doctor._clock.clocks",
        _C + "services.deadlines.due_jobs",
        _C + "services.deadlines.next_due",
        _C + "services.sessions.NodeSession._send_up_to",
        _C + "store.figures.read_figures",
        _N + "approvals.Approvals.all",
        _N + "approvals.Approvals.request.read",
        _N + "approvals.Approvals.approve",
        _N + "audit.trail.AuditTrail.entries.read",
        _N + "audit.trail.AuditTrail.prove.read",
        _N + "audit.log.size_of",
        _N + "audit.trail.AuditTrail._recount.page",
        _N + "audit.trail.AuditTrail._recount.finish",
        _N + "audit.witness.LogWitness.news",
        _N + "audit.witness._standing",
        _N + "audit.witness.LogWitness.checkpoint.read",
        _N + "offers.active_runs",
        _N + "datasets.Datasets.add._refuse_known",
        _N + "datasets._all",
        _N + "executions.Executions.claim",
        _N + "executions.Executions._verdict",
        _N + "store.outbox.store_row",
        _N + "link.session.Session._send_events",
        _N + "leftovers._current",
        _N + "metrics.NodeMetrics.read",
        _N + "retention.Backlog.count",
        _N + "scheduling.Scheduler._depth",
        _N + "scheduling.Scheduler._look",
        _N + "local_api.views._figures",
        _N + "local_api.views.Views.runs",
        _N + "local_api.views.Views.run.read",
        _N + "local_api.views.Views.waiting.read",
        _N + "local_api.views.Views.summary.read",
        _N + "retention.Retention.purge._ended",
        _N + "spool.uploader._pending",
        _N + "spool.uploader.Uploader._try",
        _N + "trust.book.last_checked",
    }
)

# Transactions of commands and of a first start, which no running federation has; tested apart, or why not.
APART: Final[Mapping[str, str]] = {
    _C + "founding._make": "of `init`: test_crash_commands",
    _C + "founding._withdraw": "of an `init` whose folder cannot be moved: test_coordinator_founding",
    _C + "cli.main.erase": "of a command, one transaction: test_crash_commands",
    _C + "cli.operation._counts": "of `status`, a command that only reads",
    _C + "store.backup.import_store": "of `restore`, into a new store: test_coordinator_backup",
    _C + "store.backup._empty": "of a `restore` whose folder cannot be moved: test_coordinator_backup",
    _N + "backups._begin_anew.work": "of `restore`, in a folder that is no state folder yet: test_node_backup",
    _C + "store.schema._run": "the migration, before anything is served: test_crash_commands",
    _N + "bootstrap._serve": "a store's first start: test_crash_commands",
    _N + "audit.witness.LogWitness.begin": "writes an empty row at a store's first start: test_crash_commands",
}
