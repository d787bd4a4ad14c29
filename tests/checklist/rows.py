"""What people were promised, by the number of each promise, and the tests that show that it is kept."""

CHECK = "tests/checklist/"
BY_HAND = CHECK + "test_by_hand.py::"
SHARING = CHECK + "test_gpu_sharing.py::"
SERVICES = CHECK + "test_services.py::"
STORE = CHECK + "test_model_store.py::"
FAILING = "tests/daemon/test_failing_engines.py::"
KILLED = "tests/daemon/test_killed_daemon.py::"
IDLE = "tests/daemon/test_idle.py::"
CRASHES = "tests/booted/test_crashes.py::"
SERVICE = "tests/booted/test_service.py::"
FACADES = "tests/booted/test_facades.py::"
SCHEDULER = "tests/core/test_scheduler.py::"
FLAGS = "tests/backends/test_llama_flags.py::"
OLLAMA = "tests/backends/test_ollama_real.py::"
VALUES = "tests/config/test_config_values.py::"
MESSAGES = "tests/config/test_config_messages.py::"
OFFLINE = "tests/cli/test_cli_offline.py::"
LINTERS = "tests/test_linters.py::"
DOCS = "tests/test_docs.py::"
METHODS = "tests/dbus/test_methods.py::"
PULL = "tests/pulling/test_pull.py::"
ADMIN = "tests/http/test_admin.py::"
MANAGEMENT = "tests/http/test_management.py::"
INFERENCE = "tests/http/test_inference.py::"
DOORS = "tests/http/test_doors.py::"
CHOICE = "tests/engine/test_backend_choice.py::"
SAFETENSORS = "tests/daemon/test_safetensors.py::"
DAILY = "tests/daemon/test_http.py::"
CLIENTS = "tests/daemon/test_http_clients.py::"
FAULTS = "tests/daemon/test_http_faults.py::"
GATEWAY = "tests/http/test_gateway.py::"
SAME = "tests/http/clients/test_gateway_real.py::"
PACKAGES = "tests/http/clients/test_gateway_packages.py::"
FRONT = "tests/http/test_ollama_front.py::"
FRONT_REAL = "tests/http/test_ollama_front_real.py::"
METRICS = "tests/http/test_metrics.py::"
REGISTRY = "tests/store/test_models.py::"
GOLDEN = "tests/importing/test_importing_golden.py::"
IMPORT = "tests/importing/test_importing_command.py::"
OPTIONS = "tests/importing/test_importing_options.py::"
STORES = "tests/catalog/test_finder_stores.py::"
FOLDERS = "tests/catalog/test_finder_folders.py::"
FOUND = "tests/daemon/test_models.py::"
GNOME = "tests/desktop/test_gnome.py::"
PLASMA = "tests/desktop/test_plasma.py::"
SESSIONS = "tests/daemon/test_sessions.py::"
SHELLS = "tests/dbus/test_sessions.py::"
LOGINS = "tests/booted/test_sessions.py::"
DAYS = "tests/booted/test_stories.py::"
WEB_SERVICE = "tests/booted/test_http_service.py::"
OWN = "tests/booted/test_own_gpud.py::"
STORAGE = "tests/cli/test_cli_storage.py::"
PAGES = "tests/test_promised_pages.py::"
READY = "tests/daemon/test_ready.py::"
LLAMA_CPP = "tests/backends/test_llama_cpp.py::"
LOAD_HEADER = "tests/http/test_load_header.py::"
ON_PROCESSOR = "tests/core/test_on_processor.py::"
ESTIMATE = "tests/core/test_estimate.py::"
EVICTION = "tests/core/test_eviction.py::"
QUEUE = "tests/core/test_queue.py::"
PRESSURE = "tests/core/test_pressure.py::"
OUTGREW = "tests/core/test_outgrowing.py::"
VRAM = "tests/daemon/test_vram.py::"
MEMORY = "tests/cli/test_cli_memory.py::"
BAD_INPUT = "tests/daemon/test_bad_input.py::"
LOG = "tests/log/test_log.py::"
OPENAPI = "tests/http/test_openapi.py::"
STORIES = CHECK + "test_stories.py::"
FAILURES = "tests/backends/test_failures.py::"

ROWS: dict[str, tuple[str, ...]] = {
    # What the memory of GPUs is given to
    "RX-07": (
        EVICTION + "test_lru_looks_at_nothing_but_the_last_use",
        EVICTION + "test_priority_takes_the_least_recently_used_of_the_lowest",
        EVICTION + "test_hybrid_finds_the_set_with_the_least_loss",
        PRESSURE + "test_above_a_configured_share_idle_models_go_until_it_is_below_the_lower_one",
        VALUES + "test_limits_of_waiting_evicting_and_watching",
        "tests/core/test_scheduler_properties.py::TestAnything",
    ),
    "RX-08": (
        QUEUE + "test_the_eleventh_is_told_that_the_queue_is_full",
        QUEUE + "test_higher_priorities_come_first_and_the_first_of_one_priority_before_the_second",
        FAULTS + "test_a_full_queue_is_503_and_a_long_wait_504",
    ),
    "RX-09": (
        MEMORY + "test_vram_shows_who_holds_each_gpu",
        "tests/daemon/test_sessions.py::test_commands_that_are_gpudctls",
    ),
    "RX-12": (
        MEMORY + "test_what_gpud_would_load_with_less_is_said",
        MEMORY + "test_what_does_not_fit_is_told_with_what_would",
        "tests/core/test_placement.py::test_as_much_as_fits_is_loaded_and_said_everywhere",
        OUTGREW + "test_a_load_is_looked_at_often_and_nothing_else_is",
        FAULTS + "test_models_that_do_not_fit_together_take_turns_and_lose_nobody",
    ),
    "RX-13": (
        VRAM + "test_a_load_is_refused_while_other_programs_hold_too_much",
        PRESSURE + "test_nothing_is_loaded_where_others_hold_too_much",
        "tests/http/test_routing.py::test_every_error_has_a_status",
    ),
    "S1-05": (
        "tests/daemon/test_on_processor.py::test_memory_that_others_take_is_seen_over_http",
        MANAGEMENT + "test_vram_is_the_same_by_both_names",
        METRICS + "test_the_last_look_is_shown_and_no_new_one_is_taken",
        "tests/http/test_feed.py::test_memory_and_queue_are_told_when_they_have_changed",
    ),
    "S1-29": (
        PRESSURE + "test_an_alert_is_given_once_and_taken_back_once",
        "tests/daemon/test_alerts.py::test_a_gpu_that_fills_up_is_told_once",
        "tests/test_webhook.py::test_an_alert_arrives_as_json",
    ),
    "S1-33": (
        "tests/core/test_scheduler_properties.py::TestAnything",
        VRAM + "test_many_loads_at_once_are_served_or_told_that_the_queue_is_full",
    ),
    "S1-69": (
        QUEUE + "test_a_hundred_loads_at_once_each_end_once",
        "tests/daemon/test_memory.py::test_everybody_asks_for_everything_at_once",
        "tests/core/test_scheduler_properties.py::TestAnything",
    ),
    "S2-22": (
        SCHEDULER + "test_nothing_is_launched_before_the_devices_have_been_looked_at",
        VRAM + "test_two_models_and_a_game_never_hold_more_than_there_is",
    ),
    "S3-10": (ESTIMATE + "test_all_experts_count",),
    "S3-12": (
        FLAGS + "test_a_new_build_gets_every_setting_by_its_own_name",
        ESTIMATE + "test_experts_of_the_first_layers_stay_on_the_host",
        ESTIMATE + "test_all_experts_count",
    ),
    "S3-29": (
        FAILURES + "test_words_are_understood",
        OUTGREW + "test_a_load_that_runs_out_of_memory_is_tried_once_with_a_quarter_more",
        FAULTS + "test_a_model_larger_than_the_gpu_is_507",
        "tests/core/test_placement.py::test_nothing_is_given_up_while_idle_or_busy_models_can_make_room",
        MEMORY + "test_what_does_not_fit_is_told_with_what_would",
    ),
    "S4-50": (
        STORIES + "test_one_that_keeps_running_out_of_memory",
        OUTGREW + "test_one_that_runs_out_of_memory_each_time_has_failed_like_any_other",
        FAILURES + "test_the_kernels_verdict_comes_first",
        LINTERS + "test_the_unit_keeps_its_promises",
    ),
    "S4-51": (BAD_INPUT + "test_a_reload_touches_only_what_has_changed",),
    "S4-52": (BAD_INPUT + "test_a_reload_touches_only_what_has_changed", FLAGS + "test_layers_follow_the_build"),
    "S4-60": (
        "tests/cli/test_cli_memory_stub.py::test_status_shows_all_there_is_to_know_of_memory",
        "tests/core/test_placement.py::test_the_parts_of_what_it_holds_are_told",
    ),
    # First steps, documents, and what to do when something is not as it should be
    "S0-42": (DOCS + "test_links_lead_somewhere",),
    "S1-01": (PAGES + "test_the_readme_names_all_three_parts_and_says_which_are_here",),
    "S1-02": (PAGES + "test_old_parts_are_mapped_to_rooms_that_are_there[layer",),
    "S1-16": (
        DAILY + "test_the_management_api_as_people_ask_it",
        "tests/http/test_management_page.py::test_the_tables_have_every_route",
    ),
    "S1-72": (
        STORIES + "test_what_holds_the_gpu",
        SHARING + "test_a_model_is_shown_with_what_the_driver_says_it_holds",
    ),
    "S1-82": (
        PAGES + "test_who_wants_to_change_something_is_told_how",
        DOCS + "test_the_map_of_the_architecture_is_true",
    ),
    "S2-15": (
        "tests/test_setup.py::test_an_environment_is_made_once",
        PAGES + "test_gpud_runs_from_its_folder_as_a_module",
        "tests/test_run.py::test_it_prints_what_works",
    ),
    "S2-38": (
        OFFLINE + "test_python_and_its_packages",
        OFFLINE + "test_doctor_looks_for_every_package_that_gpud_needs",
    ),
    "S2-42": (
        "tests/http/test_management_page.py::test_the_tables_have_every_route",
        OPENAPI + "test_the_description_is_openapi",
        OPENAPI + "test_every_route_is_described_once",
    ),
    "S3-01": (OFFLINE + "test_the_version_of_an_engine", OFFLINE + "test_the_devices_of"),
    "S3-16": (
        "tests/daemon/test_reverse_proxy.py::test_it_answers_by_its_name_with_tls",
        "tests/daemon/test_reverse_proxy.py::test_a_stream_arrives_while_it_is_made",
        "tests/config/test_config_doors.py::test_a_door_has_several_addresses_and_a_socket",
    ),
    "S3-30": (
        "tests/daemon/test_on_processor.py::test_a_build_for_the_processor_is_found_out",
        ON_PROCESSOR + "test_a_model_of_which_the_driver_knows_no_process_is_told_of",
        ON_PROCESSOR + "test_what_is_there_is_not_told_of",
    ),
    "S4-05": (
        FLAGS + "test_layers_follow_the_build",
        VALUES + "test_layers",
        PAGES + "test_who_finds_it_slow_is_told_where_to_look",
    ),
    "S4-06": (PAGES + "test_old_parts_are_mapped_to_rooms_that_are_there[file",),
    "S4-08": (
        "tests/daemon/test_imports.py::test_an_idle_gpud_has_imported_nothing_that_only_somebody_else_needs",
        STORE + "test_gpud_needs_no_web_framework",
        LLAMA_CPP + "test_the_real_server_works_one_request_at_a_time",
    ),
    "S4-35": (
        READY + "test_ready_comes_when_it_can_be_asked",
        READY + "test_a_start_that_fails_says_why_in_one_line",
    ),
    "S4-38": (OFFLINE + "test_python_and_its_packages", "tests/test_packages.py::test_what_pip_installed_works"),
    "S4-39": (
        LOG + "test_outside_systemd_plain_lines_go_to_standard_error",
        "tests/systemd/test_service_manager.py::test_outside_systemd_nothing_happens",
        KILLED + "test_the_daemon_starts_before_its_bus",
    ),
    "S4-41": (
        WEB_SERVICE + "test_a_port_that_is_taken_keeps_the_other_doors_open",
        "tests/http/layer/test_listening.py::test_a_port_that_is_taken_is_named",
        OFFLINE + "test_ports_that_are_taken",
    ),
    "S4-42": (READY + "test_a_missing_package_is_named",),
    "S4-44": (
        OFFLINE + "test_the_state_directory",
        OFFLINE + "test_device_nodes_that_gpud_may_not_use",
        OFFLINE + "test_a_file_that_the_service_may_not_read",
        BAD_INPUT + "test_a_runtime_directory_that_cannot_be_made_is_named",
    ),
    "S4-53": (
        PAGES + "test_who_finds_it_slow_is_told_where_to_look",
        PULL + "test_what_there_is_is_shown_with_what_fits",
        MEMORY + "test_what_does_not_fit_is_told_with_what_would",
    ),
    "S4-56": (
        SCHEDULER + "test_an_idle_model_is_unloaded_after_its_time_and_not_before",
        IDLE + "test_an_idle_time_of_a_reload_holds",
    ),
    "S4-59": (
        "tests/daemon/test_on_processor.py::test_a_build_for_the_processor_is_found_out",
        OFFLINE + "test_the_devices_of",
        ON_PROCESSOR + "test_a_model_of_which_the_driver_knows_no_process_is_told_of",
        PAGES + "test_who_finds_it_slow_is_told_where_to_look",
    ),
    "S4-61": (
        LOAD_HEADER + "test_the_first_answer_says_it_and_the_second_does_not",
        LOAD_HEADER + "test_ollamas_clients_are_told",
        LOAD_HEADER + "test_the_management_api_tells_it",
        GATEWAY + "test_a_stream_is_kept_company_while_its_model_loads",
    ),
    "S4-62": (PAGES + "test_who_finds_it_slow_is_told_where_to_look",),
    # The machine sleeps, and others play
    "RX-20": (
        "tests/core/test_yielding.py::test_everything_on_the_gpus_goes_and_loads_are_refused_with_the_reason",
        "tests/daemon/test_gamemode.py::test_a_game_has_the_memory_until_it_ends",
        "tests/daemon/test_gamemode.py::test_loads_meanwhile_do_as_they_are_told",
        CHECK + "test_stories.py::test_a_game_now",
    ),
    # Where models are kept
    "S1-04": (
        STORAGE + "test_the_folders_are_made_once",
        STORAGE + "test_the_folders_are_those_of_the_system",
    ),
    "S1-28": (STORAGE + "test_shells_are_told_where_models_are",),
    "S1-63": (
        STORAGE + "test_what_is_there_is_shown_two_folders_deep",
        STORAGE + "test_the_old_commands_are_there[ml-ls]",
    ),
    "S1-64": (STORAGE + "test_sizes_are_those_of_du", STORAGE + "test_the_old_commands_are_there[ml-du]"),
    "S1-65": (
        STORAGE + "test_only_the_cache_is_cleaned",
        STORAGE + "test_a_cache_that_is_a_link_is_not_cleaned",
        STORAGE + "test_the_old_commands_are_there[ml-clean-cache]",
    ),
    # Old names of units
    "S0-14": (FACADES + "test_the_status_names_model_and_memory",),
    "S0-15": (FACADES + "test_the_journal_has_the_lines_of_that_engine",),
    "S0-16": (
        FACADES + "test_a_restart_loads_the_same_models_with_new_processes",
        "tests/cli/test_cli_restart.py::test_an_engine_stands_for_all_that_it_has_loaded",
    ),
    "S0-32": (FACADES + "test_the_monitors_show_what_they_were_there_for",),
    "S0-33": (FACADES + "test_the_monitors_show_what_they_were_there_for",),
    "S1-75": (FACADES + "test_the_journal_has_the_lines_of_that_engine",),
    "S0-38": ("tests/daemon/test_memory_drill.py::test_memory_comes_back_with_each_step",),
    "S1-76": (FACADES + "test_ollamas_own_lines_and_memory_are_those_of_its_unit",),
    "S1-83": (SERVICE + "test_the_service_runs_and_owns_its_name",),
    "S2-35": (
        MANAGEMENT + "test_backends_are_listed_whether_used_or_not",
        SERVICES + "test_a_service_is_added_by_configuration_alone",
        SERVICES + "test_a_package_brings_an_engine",
    ),
    "S2-36": (WEB_SERVICE + "test_a_port_that_is_taken_keeps_the_other_doors_open",),
    "S2-40": (FACADES + "test_the_status_names_model_and_memory",),
    "S4-09": (
        OWN + "test_the_lines_of_the_old_documents_work_for_a_user",
        OWN + "test_it_needs_nothing_but_to_be_enabled",
    ),
    "S4-10": (OWN + "test_the_lines_of_the_old_documents_work_for_a_user",),
    "S4-11": (OWN + "test_the_lines_of_the_old_documents_work_for_a_user",),
    "S4-12": (OWN + "test_the_lines_of_the_old_documents_work_for_a_user",),
    "S4-13": (OWN + "test_the_lines_of_the_old_documents_work_for_a_user",),
    "S4-14": (OWN + "test_the_lines_of_the_old_documents_work_for_a_user",),
    "S4-15": (OWN + "test_the_lines_of_the_old_documents_work_for_a_user",),
    "S4-16": (OWN + "test_the_lines_of_the_old_documents_work_for_a_user",),
    "S4-17": (OWN + "test_the_lines_of_the_old_documents_work_for_a_user",),
    "S4-18": (OWN + "test_the_lines_of_the_old_documents_work_for_a_user",),
    "S4-19": (OWN + "test_the_lines_of_the_old_documents_work_for_a_user",),
    "S4-65": (OWN + "test_the_lines_of_the_old_documents_work_for_a_user",),
    "S4-66": (OWN + "test_the_lines_of_the_old_documents_work_for_a_user",),
    "S4-37": (WEB_SERVICE + "test_a_port_that_is_taken_keeps_the_other_doors_open",),
    "S4-69": (
        OFFLINE + "test_python_and_its_packages",
        OFFLINE + "test_a_machine_without_a_gpu",
        PAGES + "test_the_python_that_is_asked_for_is_the_one_that_is_said",
    ),
    "S4-70": (
        FACADES + "test_the_places_of_the_documentation_are_there",
        PAGES + "test_the_places_of_files_are_those_of_the_installation",
        PAGES + "test_the_places_of_the_configuration_and_of_state_are_those_that_gpud_uses",
    ),
    "RX-23": (OWN + "test_it_runs_where_the_machine_has_none",),
    "DC-10": (
        SHELLS + "test_a_session_ends_with_its_shell",
        SHELLS + "test_a_login_session_ends_when_its_user_logs_out",
        LOGINS + "test_what_only_carla_used_goes_with_her",
        LOGINS + "test_in_screen_it_outlives_the_login",
        DAYS + "test_the_terminal_is_closed",
    ),
    "S1-77": (FACADES + "test_the_api_is_closed_and_opened_without_touching_models",),
    "S2-23": (FACADES + "test_the_api_is_closed_and_opened_without_touching_models",),
    "S2-24": (FACADES + "test_the_api_is_closed_and_opened_without_touching_models",),
    "S2-25": (FACADES + "test_the_api_is_closed_and_opened_without_touching_models",),
    "S2-39": (FACADES + "test_a_restart_loads_the_same_models_with_new_processes",),
    "S1-78": (STORAGE + "test_little_room_is_warned_of", DAYS + "test_the_disk_is_full"),
    "S1-79": ("tests/http/test_management.py::test_the_disk_with_the_models_is_told",),
    # What models there are
    "S1-12": (
        FOUND + "test_a_file_that_is_copied_answers_by_its_name",
        MANAGEMENT + "test_a_model_whose_file_cannot_be_read_says_so",
        SERVICE + "test_a_file_in_the_store_is_a_model",
    ),
    "S1-27": (
        LINTERS + "test_the_user_and_the_directories_can_be_made",
        STORAGE + "test_the_folders_are_those_of_the_system",
        SERVICE + "test_a_file_in_the_store_is_a_model",
    ),
    "S1-35": (
        "tests/test_shelves.py::test_the_service_looks_below_the_base_directory",
        SERVICE + "test_a_file_in_the_store_is_a_model",
    ),
    "S2-02": (
        FOUND + "test_uses_are_counted_over_restarts",
        "tests/engine/test_library.py::test_uses_are_counted_once",
        REGISTRY + "test_uses_are_counted",
    ),
    "S2-06": (
        FOUND + "test_a_file_that_is_copied_answers_by_its_name",
        FOUND + "test_a_renamed_file_is_the_same_model",
    ),
    # Nothing has to be enabled for it: the folders come with the installation, and are looked into.
    "S2-17": (
        LINTERS + "test_the_user_and_the_directories_can_be_made",
        "tests/test_shelves.py::test_the_service_looks_below_the_base_directory",
        GOLDEN + "test_it_becomes_what_the_golden_file_has[nixos]",
    ),
    "S3-28": (
        FAILING + "test_the_whole_life_of_a_failing_engine_is_in_the_log",
        BY_HAND + "test_each_cause_of_a_failed_load_has_words_of_its_own",
        OFFLINE + "test_model_files_are_looked_into",
    ),
    "S4-07": (
        FOUND + "test_every_surface_has_the_same_models",
        FOLDERS + "test_the_parts_of_a_model_are_one",
        FOLDERS + "test_a_projector_belongs_to_the_model_in_its_folder",
    ),
    "S4-36": (
        OFFLINE + "test_config_check_of_a_right_file",
        OFFLINE + "test_config_check_says_every_problem",
        MESSAGES + "test_what_is_not_usable_yaml_is_told_with_its_line",
        "tests/importing/test_importing_reading.py::test_bad_json_is_refused_with_line_and_column",
    ),
    "S4-40": (
        MESSAGES + "test_what_is_not_usable_yaml_is_told_with_its_line",
        SERVICE + "test_a_configuration_with_errors_is_not_tried_again",
    ),
    "S4-43": (
        MANAGEMENT + "test_health_names_what_is_missing",
        OFFLINE + "test_folders_in_which_models_are_looked_for",
        FOUND + "test_a_folder_may_go_and_come_back",
    ),
    # The configuration is files to copy; what is printed reads back, and what is written is there whole or not at all.
    "S4-73": (
        OFFLINE + "test_config_show_of_everything_reads_back",
        IMPORT + "test_output_writes_a_file_that_gpud_takes",
        "tests/store/test_database.py::test_somebody_may_look_while_gpud_works",
    ),
    "S4-74": (
        SERVICE + "test_installing_again_keeps_the_configuration_and_the_running_gpud",
        "tests/store/test_database.py::test_every_older_version_is_brought_up_to_date",
        "tests/store/test_models_disk.py::test_a_file_of_every_earlier_version_gets_the_table",
    ),
    "S4-75": (
        FOUND + "test_a_file_that_is_copied_answers_by_its_name",
        FOUND + "test_a_reload_brings_a_folder_and_takes_it_away",
        "tests/catalog/test_watch.py::test_a_new_file_is_told_once",
    ),
    "RX-10": (
        FOUND + "test_what_is_said_with_gpudctl_stays",
        FOUND + "test_every_surface_has_the_same_models",
        "tests/engine/test_library.py::test_what_somebody_says_of_a_model_counts_at_once_and_stays",
    ),
    "RX-11": (
        FOLDERS + "test_only_what_is_included_is_found",
        FOLDERS + "test_what_is_excluded_is_not_found",
        FOLDERS + "test_a_file_that_somebody_downloads_is_left_alone",
        "tests/engine/test_library.py::test_what_cannot_be_watched_is_looked_at_from_time_to_time",
    ),
    "RX-19": (
        FOUND + "test_one_model_in_place_of_another",
        "tests/cli/test_cli_models_stub.py::test_the_others_go_before_the_model_comes",
    ),
    # One service, its engines, their settings
    "S0-01": (
        IDLE + "test_idle_ollama_models_are_unloaded_by_name",
        SERVICE + "test_the_service_runs_and_owns_its_name",
    ),
    "S0-02": (SHARING + "test_a_model_is_shown_with_what_the_driver_says_it_holds",),
    "S0-04": (
        MESSAGES + "test_a_model_without_what_its_engine_needs_is_refused",
        OFFLINE + "test_config_check_warns_of_what_is_allowed",
        BY_HAND + "test_each_cause_of_a_failed_load_has_words_of_its_own",
    ),
    "S0-05": (
        VALUES + "test_nothing_means_all_defaults",
        "tests/backends/test_llama_server.py::test_only_gpud_may_use",
        DAILY + "test_the_doors_are_on_this_machine_alone",
    ),
    "S0-06": (VALUES + "test_nothing_means_all_defaults", MESSAGES + "test_doors_do_not_share_an_address"),
    "S0-07": (FLAGS + "test_a_new_build_gets_every_setting_by_its_own_name",),
    "S0-08": (FLAGS + "test_layers_follow_the_build", VALUES + "test_layers"),
    "S0-09": (FLAGS + "test_a_new_build_gets_every_setting_by_its_own_name",),
    "S0-10": (FLAGS + "test_a_model_without_settings_has_its_context_and_layers_pinned",),
    "S0-11": (FLAGS + "test_a_new_build_gets_every_setting_by_its_own_name",),
    "S0-12": (
        FLAGS + "test_extra_flags_come_last_and_unchanged",
        FLAGS + "test_flags_that_are_not_the_users_are_refused",
        MESSAGES + "test_flags_that_gpud_owns_are_refused",
    ),
    "S0-19": (LINTERS + "test_the_service_is_in_a_sandbox", LINTERS + "test_the_unit_keeps_its_promises"),
    "S0-20": (
        KILLED + "test_a_signal_stops_every_engine",
        FAILING + "test_an_engine_that_ignores_signals_is_killed",
        SERVICE + "test_stopping_leaves_no_engine",
    ),
    "S0-21": (
        OLLAMA + "test_it_loads_answers_and_gives_the_memory_back",
        DOCS + "test_every_setting_to_come_to_is_one",
    ),
    "S0-22": (DOCS + "test_every_setting_to_come_to_is_one", SCHEDULER + "test_zero_means_never"),
    "S0-23": (
        SESSIONS + "test_what_only_that_shell_used_goes_with_it",
        SHELLS + "test_a_session_ends_with_its_shell[bash-exit]",
        LOGINS + "test_what_only_carla_used_goes_with_her",
        "tests/core/test_sessions.py::test_nothing_goes_where_that_is_not_wanted",
    ),
    "S0-27": (SHELLS + "test_the_users_own_trap_is_kept",),
    "S0-24": (
        SCHEDULER + "test_an_idle_model_is_unloaded_after_its_time_and_not_before",
        SCHEDULER + "test_zero_means_never",
        BY_HAND + "test_an_idle_model_goes_and_a_working_one_stays",
    ),
    # Nothing looks every 30 s: one timer is armed for the earliest time at which something is to happen.
    "S0-25": (
        SCHEDULER + "test_an_idle_model_is_unloaded_after_its_time_and_not_before",
        "tests/engine/test_engine.py::test_with_nothing_loaded_nothing_is_armed_and_the_devices_are_let_go",
    ),
    "S0-26": (
        "tests/backends/test_ollama.py::test_a_model_is_loaded_to_stay_and_unloaded_by_its_name",
        IDLE + "test_idle_ollama_models_are_unloaded_by_name",
    ),
    "S0-28": (
        SCHEDULER + "test_a_request_in_flight_is_not_idleness_however_long_it_takes",
        IDLE + "test_the_real_llama_server_is_unloaded_when_idle_and_never_while_it_answers",
    ),
    "S0-37": (
        CHECK + "test_stories.py::test_what_holds_the_gpu",
        SHARING + "test_a_model_is_shown_with_what_the_driver_says_it_holds",
        SHARING + "test_the_status_says_who_holds_the_gpu_now",
    ),
    "S0-39": (
        FAILING + "test_the_whole_life_of_a_failing_engine_is_in_the_log",
        CRASHES + "test_an_engines_death_is_not_gpuds",
        FACADES + "test_what_does_not_start_is_explained",
    ),
    "S0-40": (OFFLINE + "test_device_nodes_that_gpud_may_not_use", OFFLINE + "test_an_amd_gpu"),
    "S0-41": (OFFLINE + "test_model_files_are_looked_into",),
    # One owner of the GPU
    "S1-06": (
        SHARING + "test_two_models_that_exceed_the_gpu_are_never_both_there",
        "tests/core/test_scheduler_properties.py::TestAnything",
    ),
    "S1-07": (
        SHARING + "test_each_child_sees_the_gpu_that_it_was_given_by_uuid",
        SHARING + "test_variables_of_the_engine_and_of_the_model_reach_the_child",
    ),
    "S1-13": (
        "tests/backends/test_registry.py::test_every_engine_that_others_know_of_has_its_backend",
        OFFLINE + "test_the_version_of",
    ),
    "S1-23": (STORE + "test_the_base_directory_is_shown",),
    "S1-24": (SERVICES + "test_three_keys_are_enough_for_a_daemon_with_a_model",),
    "S1-26": (STORE + "test_the_service_keeps_its_state_in_a_directory_of_its_own",),
    "S1-30": (SHARING + "test_whoever_does_not_fit_beside_a_held_model_is_refused_with_numbers",),
    "S1-31": (
        FLAGS + "test_a_new_build_gets_every_setting_by_its_own_name",
        VALUES + "test_nothing_means_all_defaults",
    ),
    "S1-32": (
        IDLE + "test_idle_ollama_models_are_unloaded_by_name",
        OLLAMA + "test_it_loads_answers_and_gives_the_memory_back",
    ),
    "S1-70": (
        SERVICES + "test_a_service_is_added_by_configuration_alone",
        SERVICES + "test_the_configurations_of_the_page_are_valid",
    ),
    "S1-71": (SERVICES + "test_a_package_brings_an_engine", SERVICES + "test_the_package_of_the_page_fulfils"),
    "S1-74": (
        OLLAMA + "test_force_ends_a_model_that_works",
        OLLAMA + "test_a_model_that_works_is_busy_and_is_not_cut",
        SCHEDULER + "test_an_unload_that_takes_too_long_gives_up_and_the_model_stays",
    ),
    "S2-01": (SERVICES + "test_engines_of_two_kinds_obey_one_scheduler",),
    "S2-07": (
        FAILING + "test_a_killed_idle_engine_comes_back_by_itself",
        SCHEDULER + "test_back_off_grows_and_is_capped",
    ),
    "S2-18": (
        LINTERS + "test_the_user_and_the_directories_can_be_made",
        SERVICE + "test_it_runs_as_its_own_user_in_a_sandbox",
    ),
    "S2-19": (STORE + "test_gpud_needs_no_web_framework",),
    # Which engine serves a model
    "S2-20": (
        CHOICE + "test_an_engine_that_does_not_have_the_model_is_passed_over",
        VALUES + "test_an_open_engine_is_chosen_by_what_the_model_is",
    ),
    "S2-21": (
        CHOICE + "test_the_engine_with_idle_slots_wins",
        "tests/backends/test_custom.py::test_a_field_is_looked_for_in_each_item_of_a_list",
        SAFETENSORS + "test_the_engine_that_has_the_model_and_is_idle_wins",
    ),
    "S2-28": (CHOICE + "test_an_engine_that_does_not_have_the_model_is_passed_over",),
    "S2-29": (
        CHOICE + "test_an_engine_that_could_never_hold_it_is_passed_over",
        SAFETENSORS + "test_a_server_of_safetensors_lives_beside_others",
    ),
    "S2-30": (
        CHOICE + "test_what_runs_and_has_room_comes_first_the_less_busy_before_the_busier",
        "tests/backends/test_vllm.py::test_how_an_attached_one_stands_is_told_by_its_gauges",
    ),
    "S2-31": (
        SAFETENSORS + "test_forty_gib_in_safetensors_go_to_nobody_who_cannot_hold_them",
        VALUES + "test_a_file_in_safetensors_never_goes_to_llama_cpp",
    ),
    "S2-32": (
        VALUES + "test_the_order_of_engines_is_configured",
        CHOICE + "test_a_request_may_name_its_engines",
    ),
    # What a container had
    "S3-17": (
        GOLDEN + "test_it_becomes_what_the_golden_file_has[docker-env]",
        IMPORT + "test_paths_of_a_container_are_mapped",
    ),
    "S3-18": (
        GOLDEN + "test_it_becomes_what_the_golden_file_has[docker-env]",
        VALUES + "test_nothing_means_all_defaults",
    ),
    "S3-19": (
        GOLDEN + "test_it_becomes_what_the_golden_file_has[docker-env]",
        DOCS + "test_every_setting_to_come_to_is_one",
    ),
    "S3-20": (FLAGS + "test_layers_follow_the_build", GOLDEN + "test_it_becomes_what_the_golden_file_has[docker-env]"),
    "S3-21": (
        SHARING + "test_variables_of_the_engine_and_of_the_model_reach_the_child",
        IMPORT + "test_paths_of_a_container_are_mapped",
    ),
    "S3-22": (FLAGS + "test_a_new_build_gets_every_setting", SCHEDULER + "test_what_does_not_fit_is_refused_with_need"),
    "S3-23": (FLAGS + "test_layers_follow_the_build", FLAGS + "test_a_new_build_gets_every_setting_by_its_own_name"),
    "S3-31": ("tests/log/test_log.py::test_a_line_of_an_engine_is_found_by_engine_and_by_model",),
    "S3-32": (SHARING + "test_variables_of_the_engine_and_of_the_model_reach_the_child",),
    # What other programs were told
    "S0-03": (
        OPTIONS + "test_options_may_be_nested_dotted_or_described",
        OPTIONS + "test_a_service_that_is_not_enabled_is_not_carried_over",
    ),
    "S0-13": (OPTIONS + "test_the_firewall_is_not_gpuds",),
    "S1-08": (GOLDEN + "test_it_becomes_what_the_golden_file_has[nixos]",),
    "S1-09": (GOLDEN + "test_it_becomes_what_the_golden_file_has[nixos]",),
    "S1-10": (GOLDEN + "test_it_becomes_what_the_golden_file_has[nixos]",),
    "S1-22": (GOLDEN + "test_it_becomes_what_the_golden_file_has[nixos]",),
    "S1-25": (
        GOLDEN + "test_it_becomes_what_the_golden_file_has[nixos]",
        DOCS + "test_every_setting_to_come_to_is_one",
    ),
    "S1-80": (DOCS + "test_every_setting_to_come_to_is_one", DOCS + "test_an_old_name_is_answered_with_ours"),
    "S2-16": (GOLDEN + "test_it_becomes_what_the_golden_file_has[nixos]",),
    "S4-20": (IMPORT + "test_every_golden_file_passes_the_check[llama-cpp-server]",),
    "S4-24": (
        GOLDEN + "test_it_becomes_what_the_golden_file_has[llama-cpp-server]",
        GOLDEN + "test_it_becomes_what_the_golden_file_has[llama-cpp-server-models]",
    ),
    "S4-25": (
        GOLDEN + "test_it_becomes_what_the_golden_file_has[llama-cpp-server]",
        GOLDEN + "test_it_becomes_what_the_golden_file_has[llama-cpp-server-models]",
    ),
    "S4-26": (GOLDEN + "test_it_becomes_what_the_golden_file_has[llama-cpp-server]",),
    "S4-27": (
        GOLDEN + "test_it_becomes_what_the_golden_file_has[llama-cpp-server]",
        GOLDEN + "test_it_becomes_what_the_golden_file_has[llama-cpp-server-models]",
    ),
    "S4-29": (GOLDEN + "test_it_becomes_what_the_golden_file_has[llama-cpp-server]",),
    "S4-30": (GOLDEN + "test_it_becomes_what_the_golden_file_has[llama-cpp-server]",),
    "S4-31": (GOLDEN + "test_it_becomes_what_the_golden_file_has[llama-cpp-server]",),
    "S4-32": (
        GOLDEN + "test_it_becomes_what_the_golden_file_has[llama-cpp-server]",
        IMPORT + "test_every_golden_file_passes_the_check[llama-cpp-server]",
        "tests/importing/test_importing_reading.py::test_bad_json_is_refused_with_line_and_column",
    ),
    # What goes wrong
    "S4-28": (FLAGS + "test_layers_follow_the_build", VALUES + "test_layers"),
    "S4-46": (
        BY_HAND + "test_a_refusal_has_a_name_and_says_what_to_do",
        BY_HAND + "test_each_cause_of_a_failed_load_has_words_of_its_own",
    ),
    "S4-49": (
        BY_HAND + "test_each_cause_of_a_failed_load_has_words_of_its_own",
        "tests/backends/test_files.py::test_another_format_says_what_the_file_starts_with",
    ),
    "S4-57": (
        FAILING + "test_a_killed_idle_engine_comes_back_by_itself",
        CRASHES + "test_an_engines_death_is_not_gpuds",
    ),
    "S4-58": (
        FAILING + "test_an_engine_that_is_killed_again_and_again_is_given_up",
        "tests/cli/test_cli_daemon.py::test_reset_forgets_failures",
        "tests/cli/test_cli_daemon.py::test_reset_of_an_engine_is_for_all_of_it_that_has_failed",
    ),
    "RX-15": (
        FAILING + "test_an_engine_killed_while_it_answers_ends_the_answer",
        "tests/processes/test_stop.py::test_what_holds_the_pipe_open_is_ended_with_the_main_process",
    ),
    "RX-18": (
        FLAGS + "test_a_new_build_gets_every_setting_by_its_own_name",
        FLAGS + "test_an_old_build_gets_the_same_in_its_own_way",
        "tests/engine/test_engine.py::test_a_model_goes_by_its_name_its_aliases_and_with_its_suffix",
    ),
    "RX-24": (SERVICE + "test_memory_can_be_limited_as_the_example_says",),
    # Managing it over HTTP
    "S1-14": (
        MANAGEMENT + "test_backends_are_listed_whether_used_or_not",
        "tests/backends/test_vllm.py::test_an_attached_one_is_known_by_the_name_that_it_serves",
    ),
    "S1-15": (
        MANAGEMENT + "test_backends_are_listed_whether_used_or_not",
        "tests/backends/test_tgi.py::test_an_attached_one_is_used_and_let_go",
    ),
    "S1-34": (MANAGEMENT + "test_backends_are_listed_whether_used_or_not",),
    "S1-36": (MANAGEMENT + "test_health_names_what_is_missing",),
    "S1-37": (MANAGEMENT + "test_vram_is_the_same_by_both_names", MANAGEMENT + "test_curl_and_jq_read_vram"),
    "S1-38": (MANAGEMENT + "test_models_are_a_list_with_lists_in_it",),
    "S1-39": (
        INFERENCE + "test_a_prompt_is_answered_with_text",
        INFERENCE + "test_what_does_not_fit_is_507",
        INFERENCE + "test_what_cannot_be_asked_is_refused",
    ),
    "S1-11": (REGISTRY + "test_the_old_queries_work",),
    "S1-62": (
        MANAGEMENT + "test_curl_and_jq_read_vram",
        "tests/http/test_management_page.py::test_the_commands_work",
    ),
    "S1-68": (CHOICE + "test_the_engine_with_idle_slots_wins", CHOICE + "test_a_request_may_name_its_engines"),
    "S1-73": (MANAGEMENT + "test_status_has_everything_at_one_glance",),
    "S2-05": (
        "tests/store/test_kept.py::test_what_is_kept_is_for_the_daemons_user_alone",
        "tests/store/test_kill.py::test_a_killed_look_is_there_in_full_or_not_at_all",
        REGISTRY + "test_the_old_queries_work",
    ),
    "S2-26": (MANAGEMENT + "test_models_are_a_list_with_lists_in_it",),
    "S2-27": (
        MANAGEMENT + "test_a_model_is_found_by_number_name_and_alias",
        MANAGEMENT + "test_an_unknown_model_is_404",
    ),
    "S2-41": (
        ADMIN + "test_health_has_the_shape_of_llama_server_and_more",
        ADMIN + "test_health_is_well_while_a_model_loads",
    ),
    "S4-45": (DOORS + "test_a_door_that_is_taken_is_told_and_tried_again_at_the_next_reload",),
    "S4-47": (
        MANAGEMENT + "test_a_model_is_found_by_number_name_and_alias",
        MANAGEMENT + "test_an_unknown_model_is_404[alpha-8b]",
    ),
    "S4-48": (ADMIN + "test_what_went_wrong_is_found_by_the_word_error",),
    "S4-54": (
        ADMIN + "test_admin_unload_by_name_and_all",
        ADMIN + "test_admin_unload_refuses_what_it_cannot_understand",
    ),
    "S4-63": (DOORS + "test_a_reload_changes_the_rules_and_keeps_the_connections",),
    "S4-64": (ADMIN + "test_health_has_the_shape_of_llama_server_and_more", ADMIN + "test_curl_reads_health"),
    "RX-01": (MANAGEMENT + "test_the_editors_plugin_reads_api_health",),
    "RX-02": (
        "tests/http/test_gateway.py::test_without_a_name_it_is_the_default_model",
        MANAGEMENT + "test_a_model_is_found_by_number_name_and_alias[default]",
    ),
    "RX-04": (
        MANAGEMENT + "test_budget_says_whether_it_fits_and_how_many_layers_would",
        MANAGEMENT + "test_load_takes_a_number_a_name_or_a_path",
        MANAGEMENT + "test_unload_takes_a_name_all_nothing_or_a_backend",
        MANAGEMENT + "test_switch_unloads_the_backends_other_models_first",
        MANAGEMENT + "test_schedule_goes_by_priority",
        "tests/http/test_openapi.py::test_answers_are_as_described",
    ),
    "RX-05": (
        MANAGEMENT + "test_what_does_not_fit_is_507_with_both_numbers",
        "tests/http/test_routing.py::test_every_error_has_a_status",
    ),
    "RX-06": (
        "tests/http/test_websocket.py::test_what_happens_is_told_in_the_names_that_clients_know",
        ADMIN + "test_events_are_told_and_resumed",
    ),
    "RX-14": (ADMIN + "test_unload_without_a_model_means_all",),
    "RX-16": (INFERENCE + "test_a_client_that_leaves_ends_its_question",),
    # The doors
    "S0-17": (CLIENTS + "test_curl_as_people_type_it", PACKAGES + "test_curl_as_in_the_documentation"),
    "S0-18": (CLIENTS + "test_openais_package", PACKAGES + "test_openais_package_lists_chats_and_streams"),
    "S0-29": (
        FRONT + "test_without_a_name_everything_is_unloaded",
        FRONT + "test_what_somebody_else_holds_stays",
        SESSIONS + "test_ollama_unload",
        SESSIONS + "test_without_gpud",
    ),
    "S0-30": (
        FRONT + "test_ps_tells_what_is_loaded",
        CLIENTS + "test_ollamas_package",
        SESSIONS + "test_the_lists_of_ollama",
    ),
    "S0-31": (
        CLIENTS + "test_ollamas_package",
        FRONT_REAL + "test_curl_reads_lines_of_json",
        SESSIONS + "test_the_lists_of_ollama",
    ),
    "S0-34": (DAILY + "test_the_doors_are_on_this_machine_alone", VALUES + "test_nothing_means_all_defaults"),
    "S0-35": (FRONT_REAL + "test_the_ollama_command_uses_ollamas_own",),
    "S0-36": (
        FRONT_REAL + "test_the_ollama_command_uses_ollamas_own",
        FRONT_REAL + "test_the_ollama_command_uses_a_model_of_llama_servers",
    ),
    "S1-60": (CLIENTS + "test_curl_as_people_type_it",),
    "S1-61": (
        FRONT + "test_without_a_name_everything_is_unloaded",
        FRONT_REAL + "test_the_ollama_command_uses_ollamas_own",
    ),
    "S2-03": (MANAGEMENT + "test_backends_are_listed_whether_used_or_not",),
    "S2-04": (DAILY + "test_the_doors_are_on_this_machine_alone", VALUES + "test_nothing_means_all_defaults"),
    "S2-08": ("tests/backends/test_vllm.py::test_an_attached_one_is_known_by_the_name_that_it_serves",),
    "S2-09": ("tests/backends/test_tgi.py::test_an_attached_one_is_used_and_let_go",),
    "S2-10": (MANAGEMENT + "test_health_names_what_is_missing", DAILY + "test_the_management_api_as_people_ask_it"),
    "S2-11": (
        MANAGEMENT + "test_vram_is_the_same_by_both_names",
        DAILY + "test_the_management_api_as_people_ask_it",
    ),
    "S2-12": (MANAGEMENT + "test_models_are_filtered", DAILY + "test_the_management_api_as_people_ask_it"),
    "S2-13": (
        INFERENCE + "test_a_prompt_is_answered_with_text",
        INFERENCE + "test_what_cannot_be_asked_is_refused",
        DAILY + "test_the_management_api_as_people_ask_it",
    ),
    "S2-14": (MANAGEMENT + "test_backends_are_listed_whether_used_or_not",),
    "S2-33": (
        INFERENCE + "test_messages_and_options_go_to_the_engine",
        MANAGEMENT + "test_vram_is_the_same_by_both_names",
    ),
    "S2-34": (
        "tests/backends/test_custom.py::test_health_may_be_a_whole_url",
        SERVICES + "test_a_service_is_added_by_configuration_alone",
    ),
    "S2-37": (DAILY + "test_the_doors_are_on_this_machine_alone", WEB_SERVICE + "test_every_door_is_open_and_told"),
    "S3-02": (SAME + "test_answers_are_the_same_as_without_gpud",),
    "S3-03": (FLAGS + "test_flash_attention_has_a_value_or_is_a_switch",),
    "S3-04": (FLAGS + "test_a_new_build_gets_every_setting_by_its_own_name",),
    "S3-05": (CLIENTS + "test_prometheus_reads_what_was_done", METRICS + "test_promtool_finds_nothing"),
    "S3-06": (
        PULL + "test_a_repository_in_safetensors_goes_into_the_librarys_cache",
        PULL + "test_a_model_comes_into_the_folder_at_which_gpud_looks",
    ),
    "S3-07": (PULL + "test_all_parts_come_with_what_sees_images",),
    "S3-08": (
        STORES + "test_a_model_in_the_hubs_cache_is_found_with_its_digest",
        STORES + "test_the_current_revision_is_the_one_that_is_listed",
        STORES + "test_without_a_current_revision_the_newest_counts",
        "tests/catalog/test_finder_copies.py::test_one_model_everywhere_is_one_model",
    ),
    "S3-09": (
        "tests/pulling/test_hub.py::test_the_library_finds_what_was_laid_out",
        SHARING + "test_variables_of_the_engine_and_of_the_model_reach_the_child",
    ),
    "S3-11": (
        GOLDEN + "test_it_becomes_what_the_golden_file_has[docker-env]",
        OPTIONS + "test_what_the_image_takes_is_said_where_its_variables_say_nothing",
    ),
    "S3-13": (
        DAILY + "test_what_was_asked_reaches_the_engine_as_it_was_asked",
        FAULTS + "test_a_body_of_a_hundred_megabytes_passes_and_one_byte_too_many_does_not",
        FLAGS + "test_a_new_build_gets_every_setting_by_its_own_name",
    ),
    "S3-14": (
        DAILY + "test_names_are_exact_and_forgiving_where_that_is_safe",
        GATEWAY + "test_a_model_is_found_by_each_of_its_names",
    ),
    "S3-15": (
        DAILY + "test_what_was_asked_reaches_the_engine_as_it_was_asked",
        SAME + "test_answers_are_the_same_as_without_gpud",
    ),
    "S3-24": (ADMIN + "test_health_has_the_shape_of_llama_server_and_more",),
    "S3-25": (GATEWAY + "test_the_list_of_models_says_how_each_stands",),
    "S3-26": (DAILY + "test_a_model_is_loaded_listed_and_unloaded_by_the_front_door",),
    "S3-27": (
        DAILY + "test_a_model_is_loaded_listed_and_unloaded_by_the_front_door",
        ADMIN + "test_unload_answers_as_the_orchestrator",
    ),
    "S4-01": (CLIENTS + "test_openais_package", FRONT + "test_openais_language_is_spoken_here_too"),
    "S4-02": (CLIENTS + "test_a_request_loads_its_model_once",),
    "S4-03": (DAILY + "test_nothing_remains_after_the_last_idle_model",),
    "S4-04": (
        DAILY + "test_a_stream_arrives_while_it_is_made",
        CLIENTS + "test_curl_as_people_type_it",
        FAULTS + "test_a_client_that_leaves_takes_its_engines_work_with_it",
    ),
    "S4-21": (DAILY + "test_the_doors_are_on_this_machine_alone", DOCS + "test_every_setting_to_come_to_is_one"),
    "S4-22": (
        FAULTS + "test_a_door_that_moves_keeps_its_running_answers",
        DOCS + "test_every_setting_to_come_to_is_one",
    ),
    "S4-23": (DAILY + "test_a_listed_page_comes_in_after_a_reload", "tests/http/test_access.py::test_a_listed_page"),
    "S4-33": (WEB_SERVICE + "test_with_systemds_sockets_a_restart_refuses_nobody",),
    "S4-34": (
        DAILY + "test_a_reload_is_asked_for_and_refused_over_http",
        FAULTS + "test_a_reload_cuts_no_stream",
        ADMIN + "test_reload_tells_what_is_configured_now",
    ),
    "S4-55": (DAILY + "test_nothing_remains_after_the_last_idle_model",),
    "S4-67": (GATEWAY + "test_the_list_of_models_says_how_each_stands",),
    "S4-68": (CLIENTS + "test_curl_as_people_type_it",),
    "S4-71": (
        DAILY + "test_a_model_is_loaded_listed_and_unloaded_by_the_front_door",
        DAILY + "test_a_reload_is_asked_for_and_refused_over_http",
        CLIENTS + "test_curl_as_people_type_it",
    ),
    "S4-72": (
        GATEWAY + "test_the_body_goes_to_the_engine_as_it_came",
        CLIENTS + "test_curl_as_people_type_it",
    ),
    "RX-03": (CLIENTS + "test_openais_package",),
    "RX-17": (
        GATEWAY + "test_tokenizing_does_not_load_a_model_unless_asked_to",
        CLIENTS + "test_an_engines_own_pages_by_the_front_door",
    ),
    "RX-21": (
        DAILY + "test_a_key_lets_in_for_what_it_is_given",
        "tests/http/test_access.py::test_each_key_has_its_rate",
    ),
    "RX-22": (METRICS + "test_every_family_has_numbers_names_and_words",),
    # What it is
    "DC-01": (KILLED + "test_a_second_daemon_gives_way", SERVICE + "test_a_second_gpud_gives_way"),
    "DC-02": (
        FAILING + "test_a_killed_idle_engine_comes_back_by_itself",
        IDLE + "test_a_killed_ollama_takes_its_models_with_it_and_comes_back",
        CRASHES + "test_engines_outlive_the_death_of_gpud",
        KILLED + "test_engines_end_with_a_killed_daemon_in_the_foreground",
    ),
    "DC-03": (BY_HAND + "test_an_idle_model_goes_and_a_working_one_stays",),
    "DC-04": (
        SHARING + "test_a_configured_budget_is_the_most_that_is_taken",
        "tests/core/test_scheduler_properties.py::TestAnything",
    ),
    "DC-05": (
        CRASHES + "test_the_journal_explains_what_happened",
        "tests/log/test_log.py::test_a_notice_becomes_a_message_with_fields",
        "tests/log/test_log.py::test_every_kind_has_its_own_id_and_an_explanation",
    ),
    "DC-06": (BY_HAND + "test_load_status_and_unload_with_busctl", SERVICE + "test_root_loads_and_unloads_with_busctl"),
    "DC-07": (BY_HAND + "test_all_models_go_by_one_word",),
    "DC-08": (
        BY_HAND + "test_load_status_and_unload_with_busctl",
        BY_HAND + "test_a_desktop_is_told_without_asking",
        DOCS + "test_the_commands_of_a_block_work[dbus.md",
    ),
    "DC-09": (
        METHODS + "test_without_polkit_only_root_may_and_the_refusal_says_so",
        "tests/dbus/test_installed_files.py::test_the_bus_policy_opens_exactly_the_interfaces_that_the_object_has",
        "tests/dbus/test_installed_files.py::test_bus_activation_goes_through_systemd",
        SERVICE + "test_a_stranger_may_look_but_not_touch",
    ),
    "DC-11": (
        GNOME + "test_it_shows_a_loaded_model",
        GNOME + "test_it_turns_amber_and_red",
        GNOME + "test_a_click_unloads_one_model",
        "tests/gnome/test_gnome_sources.py::test_it_neither_blocks_nor_polls",
        PLASMA + "test_the_panel_and_the_tray_show_what_is_loaded",
        PLASMA + "test_a_full_gpu_is_amber_and_then_red",
        PLASMA + "test_a_click_unloads_a_model",
        "tests/plasma/test_plasma_sources.py::test_nothing_is_asked_by_the_clock",
        "tests/tray/test_tray.py::test_a_click_unloads_a_model",
    ),
    "DC-12": (STORE + "test_the_top_level_is_as_people_expect_it",),
    "DC-13": (
        "tests/dbus/test_dispatch.py::test_a_call_without_interface_finds_its_method[dbus_fast]",
        "tests/systemd/test_service_manager.py::test_outside_systemd_nothing_happens",
    ),
}
