"""What Tidings promises, and the cases that prove it."""

from __future__ import annotations

from typing import NamedTuple


class Promise(NamedTuple):
    """One promise to users of Tidings."""

    title: str
    text: str
    cases: tuple[str, ...]
    """Names of cases, of either layer."""


PROMISES = (
    Promise(
        "Stored before it returns",
        "`await bus.publish(…)` returns when the engine has the message as durably as its setting says. A lost answer "
        "is asked for again with the same id, then raises `Unconfirmed`: unknown, never failed. A repeat is stored "
        "once.",
        (
            "published_survives_a_restart",
            "acknowledged_survives_kill_9",
            "a_restart_loses_and_doubles_nothing",
            "a_lost_leader_costs_time_only",
            "a_lost_answer_stores_once",
            "an_answer_that_never_comes_is_unconfirmed",
            "a_cut_in_the_middle_of_many",
            "a_frozen_server_harms_nobody",
            "publish_while_down_fails_in_time",
            "same_id_stored_once",
            "repeated_batch_stores_the_rest",
            "an_id_is_stored_once",
            "not_before_keeps_the_identity",
            "many_keep_their_order",
        ),
    ),
    Promise(
        "Nothing unhandled is dropped",
        "A message leaves only after every group that claims it has handled it, or by a person's hand. What nobody "
        "claims waits, and the first group that comes for it gets it.",
        (
            "the_first_group_gets_what_waited",
            "unclaimed_events_are_told",
            "a_partly_claimed_wildcard",
            "groups_declared_together_get_all",
            "new_group_gets_what_is_stored",
            "claim_added_to_a_live_group",
            "cancelled_pull_loses_nothing",
            "a_restart_takes_no_message_from_its_group",
            "a_lost_group_is_made_again",
            "events_outside_of_a_filter_stay",
            "nothing_unhandled_goes",
            "purge_leaves_what_is_open",
            "unclaimed_waits_and_expires",
            "group_away_for_long_finds_everything",
            "cut_off_declaration_is_mended_first",
            "a_narrowing_cut_off_is_finished",
            "dead_letters_outlive_their_entries",
            "retention_is_an_upper_bound",
            "full_store_refuses_publishers_only",
            "ledger",
            "ledger_with_faults",
        ),
    ),
    Promise(
        "At least once; once in your database",
        "Writes, inbox mark and follow-up events of a handler with a transaction are committed together, and a "
        "redelivery changes nothing. Without one: at least once, with `message.id` as idempotency key.",
        (
            "commit_brings_everything",
            "failure_leaves_nothing_behind",
            "a_redelivery_changes_nothing",
            "a_late_commit_is_fenced",
            "what_waits_shares_a_commit",
            "a_group_loses_no_update",
            "a_group_that_comes_again_changes_nothing",
            "a_late_group_is_fenced",
            "the_outbox_follows_the_transaction",
            "the_outbox_waits_for_the_server",
            "publishing_beside_a_transaction_is_refused",
            "an_answer_comes_after_its_commit",
            "lost_lease_redelivers",
            "follow_ups_leave_before_the_end",
            "follow_ups_of_a_rerun_are_stored_once",
            "a_crash_costs_no_attempt",
            "replay_runs_a_transaction_again",
        ),
    ),
    Promise(
        "A failing message harms no other",
        "It is retried by policy, then it is a dead letter with its original bytes, headers, traceback, attempts, "
        "handler and host; put back, it goes to the one group that failed. The death of a process blames nobody.",
        (
            "a_failing_event_harms_no_other",
            "failure_is_retried_then_dead",
            "policies_by_exception",
            "rejected_is_dead_at_once",
            "too_long_is_an_attempt",
            "cancelling_itself_is_a_failure",
            "poison_harms_no_neighbour",
            "a_poison_message_spoils_no_group",
            "a_batch_has_an_outcome_for_each",
            "a_batch_that_raises_is_handled_singly",
            "dead_letter_is_whole",
            "dead_letter_is_stored_once",
            "redrive_goes_to_one_group",
            "redriven_to_the_group_that_failed",
            "redriven_may_die_again",
            "what_is_handed_back_comes_at_once",
            "a_full_hand_of_the_dead_harms_nobody",
            "attempts_do_not_count_lost_leases",
            "begun_and_never_ended_is_a_crash",
            "an_outcome_takes_the_beginning_back",
            "a_beginning_is_kept_over_a_restart",
            "nobody_begins_what_is_not_his",
            "redriven_has_never_crashed",
            "a_crash_loop_is_caught",
            "an_outage_burns_nothing",
            "one_that_always_fails_is_no_outage",
        ),
    ),
    Promise(
        "Order on request",
        "`order=True`: the messages of each key are handled in their order in the stream, over failures and restarts, "
        "for effects in the database (an epoch there refuses the commit of a worker that was taken over from). A key "
        "waits behind its dead letter. Groups that do not ask get what one publisher sent in its order only while one "
        "reader reads and nothing fails.",
        (
            "one_reader_gets_them_in_order",
            "many_keep_their_order",
            "push_misses_nothing",
            "ordered_goes_to_one_reader",
            "ordered_comes_again_from_the_oldest",
            "handed_back_it_keeps_its_order",
            "parked_waits_and_comes_back_in_order",
            "put_back_comes_before_what_is_newer",
            "put_back_comes_after_what_is_older",
            "order_outlives_the_server",
            "a_key_keeps_its_order_over_failures",
            "a_dead_letter_parks_its_key",
            "parked_outlives_the_worker",
            "a_standby_takes_over",
            "one_that_is_cut_off_commits_nothing",
            "order_is_kept_over_a_server_kill",
        ),
    ),
    Promise(
        "The publisher never changes",
        "Groups are added, scaled, paused, changed and removed without a word to the publisher.",
        (
            "every_group_gets_all",
            "one_member_gets_each",
            "a_late_group_gets_what_comes",
            "a_handler_that_listens_to_more",
            "two_versions_side_by_side",
            "a_group_begins_at_a_time",
            "replay_reaches_one_group",
            "many_processes_declare_at_once",
            "declaring_again_takes_nothing_away",
            "a_lease_is_its_groups_own",
            "a_pause_beside_a_start_holds",
            "a_removal_beside_a_start_holds",
            "a_removal_cut_off_is_finished",
            "a_paused_group_waits_for_a_person",
            "forgotten_group_is_gone",
        ),
    ),
    Promise(
        "A slow handler keeps its lease; a stopping worker finishes or hands back",
        "A lease is renewed while its handler runs. A worker that stops takes nothing new, ends what runs, and hands "
        "back the rest at once, with no attempt burnt.",
        (
            "a_slow_handler_keeps_its_lease",
            "extend_holds",
            "a_slow_wire_is_only_slow",
            "stopping_finishes_what_runs",
            "a_hanging_handler_is_handed_back",
            "a_stopped_group_is_handed_back",
            "a_stopping_process_answers_what_it_took",
            "stop_pulling_hands_back",
            "closing_hands_back",
            "closing_while_down_is_prompt",
            "late_settle_is_ignored",
            "a_late_word_ends_no_other_work",
        ),
    ),
    Promise(
        "The browser misses nothing",
        "Push resumes behind the place a browser has seen, on any web process.",
        (
            "push_misses_nothing",
            "push_goes_on_after_a_cut",
            "purge_is_noted_for_late_readers",
            "read_pages",
            "read_wakes_early",
        ),
    ),
    Promise(
        "One vocabulary on every engine",
        "The same case, word for word, passes on each of them; nothing of ours has to be started again after a server "
        "or a wire has failed.",
        (
            "roundtrip",
            "filters_choose",
            "everything_goes_on_after_a_restart",
            "everything_goes_on_after_a_cut",
            "three_drops_in_a_row",
            "a_dead_wire_is_noticed",
            "hundred_requests_do_not_mix",
            "a_stream_arrives_in_order",
            "a_dead_stream_is_noticed",
            "everybody_is_asked",
            "a_slow_listener_is_told",
            "every_process_hears_a_broadcast",
            "stats_add_up",
        ),
    ),
    Promise(
        "Bad input gets a clear error and loses nothing",
        "What cannot be carried is refused before the wire; what arrives and cannot be read is a dead letter with its "
        "bytes.",
        (
            "bad_input_is_refused_before_the_wire",
            "refused_before_anything_is_stored",
            "bad_bytes_are_kept",
            "unknown_types_are_kept",
            "unknown_fields_are_ignored",
            "older_versions_are_brought_up_to_date",
            "newer_versions_wait_for_their_workers",
            "expired_events_are_kept",
            "foreign_messages_are_handled",
            "a_wrong_result_is_told",
            "live_messages_have_the_same_limit",
        ),
    ),
)
