# Tests of security and settings. They run in `just check-infra`, without a cloud.

mock_provider "google" {}
mock_provider "time" {}

variables {
  project_id         = "test-project"
  region             = "us-east4"
  function_name      = "people"
  lake_bucket        = "test-lake"
  messages_bucket    = "test-messages"
  sources_bucket     = "test-sources"
  orchestrator_users = ["user:name@example.com"]
}

override_resource {
  target = google_service_account.function["cloud_function"]
  values = { email = "function@test", member = "serviceAccount:function@test", name = "accounts/function" }
}

override_resource {
  target = google_service_account.orchestrator
  values = { email = "orchestrator@test", member = "serviceAccount:orchestrator@test", name = "accounts/orchestrator" }
}

override_resource {
  target = google_service_account.build
  values = { email = "build@test", member = "serviceAccount:build@test", name = "accounts/build" }
}

override_data {
  target = data.google_project.project
  values = { number = 123456789 }
}

override_resource {
  target = google_cloudfunctions2_function.function["cloud_function"]
  values = { service_config = { uri = "https://people-abcdef-ez.a.run.app" } }
}

override_resource {
  target = google_artifact_registry_repository.images
  values = { id = "repositories/people", name = "people" }
}

run "defaults" {
  # Buckets

  assert {
    condition = alltrue([
      for bucket in [
        google_storage_bucket.messages, google_storage_bucket.lake,
        google_storage_bucket.sources, google_storage_bucket.builds[0],
      ] : bucket.uniform_bucket_level_access && bucket.public_access_prevention == "enforced"
    ])
    error_message = "A bucket has access control lists, or can be made public."
  }

  assert {
    condition     = one(google_storage_bucket.messages.lifecycle_rule[0].action).type == "Delete"
    error_message = "Messages are never deleted."
  }

  assert {
    condition     = google_storage_bucket.messages.soft_delete_policy[0].retention_duration_seconds == 0
    error_message = "Deleted messages are kept and billed."
  }

  assert {
    condition     = google_storage_bucket.lake.soft_delete_policy[0].retention_duration_seconds >= 7 * 24 * 60 * 60
    error_message = "Objects deleted from the lake cannot be restored for a week."
  }

  assert {
    condition     = length(google_storage_bucket.lake.lifecycle_rule) == 0 && google_storage_bucket.lake.force_destroy != true
    error_message = "Terraform or a lifecycle rule can delete tables."
  }

  assert {
    condition     = google_storage_bucket.builds[0].name == "gcf-v2-sources-123456789-us-east4"
    error_message = "The bucket does not have the name that Google builds from."
  }

  assert {
    condition     = google_storage_bucket.builds[0].force_destroy != true && google_storage_bucket.builds[0].versioning[0].enabled
    error_message = "Terraform can delete the sources of other functions in the project."
  }

  assert {
    condition     = one(google_storage_bucket.builds[0].lifecycle_rule[0].condition).with_state == "ARCHIVED"
    error_message = "A lifecycle rule deletes sources that are in use."
  }

  assert {
    condition = alltrue([
      for bucket in [google_storage_bucket.messages, google_storage_bucket.lake] :
      bucket.location == "us-east4" && length(bucket.custom_placement_config) == 0 && length(bucket.encryption) == 0
    ])
    error_message = "A bucket is not in the region, or has a key, though no variable says so."
  }

  # The function

  assert {
    condition     = length(google_secret_manager_secret_iam_member.function_reads_secret) == 0
    error_message = "A function can read secrets that it does not name."
  }

  assert {
    condition     = google_cloudfunctions2_function.function["cloud_function"].service_config[0].max_instance_request_concurrency == 1
    error_message = "The function does not set its concurrency."
  }

  assert {
    condition     = google_cloudfunctions2_function.function["cloud_function"].service_config[0].environment_variables["THREADS"] == "4"
    error_message = "The server of the function does not have four threads."
  }

  assert {
    condition = (
      google_cloudfunctions2_function.function["cloud_function"].build_config[0].runtime == "python313" &&
      google_cloudfunctions2_function.function["cloud_function"].service_config[0].ingress_settings == "ALLOW_ALL" &&
      length(google_cloudfunctions2_function.function["cloud_function"].service_config[0].direct_vpc_network_interface) == 0
    )
    error_message = "The function has another runtime, or a network, though no variable says so."
  }

  # The bundle that is deployed

  assert {
    condition = (
      google_cloudfunctions2_function.function["cloud_function"].build_config[0].environment_variables["BUNDLE"] == filesha256("../build/cloud_function.zip") &&
      google_cloudfunctions2_function.function["cloud_function"].labels["bundle"] == substr(filesha256("../build/cloud_function.zip"), 0, 63) &&
      google_storage_bucket_object.bundle["cloud_function"].name == "${filesha256("../build/cloud_function.zip")}.zip"
    )
    error_message = "The function does not say which bundle is deployed."
  }

  assert {
    condition     = time_sleep.grants.create_duration == "90s"
    error_message = "The function is built before its roles are effective."
  }

  assert {
    condition     = length(google_monitoring_alert_policy.responds_with_errors) == 0
    error_message = "There are alert policies without a notification channel."
  }

  assert {
    condition     = google_cloudfunctions2_function.function["cloud_function"].service_config[0].environment_variables["MESSAGES_BUCKET"] == "test-messages"
    error_message = "The function does not get the name of its messages bucket."
  }

  assert {
    condition     = google_cloudfunctions2_function.function["cloud_function"].service_config[0].service_account_email == "function@test"
    error_message = "The function does not run as its own account."
  }

  assert {
    condition = (
      google_cloudfunctions2_function.function["cloud_function"].build_config[0].service_account == "accounts/build" &&
      google_cloudfunctions2_function.function["cloud_function"].build_config[0].docker_repository == "repositories/people"
    )
    error_message = "The function is not built by the build account, or not into its repository."
  }

  # Roles

  assert {
    condition = (
      google_storage_bucket_iam_member.function_creates_messages["cloud_function"].bucket == "test-messages" &&
      google_storage_bucket_iam_member.function_creates_messages["cloud_function"].role == "roles/storage.objectCreator" &&
      google_storage_bucket_iam_member.function_creates_messages["cloud_function"].member == "serviceAccount:function@test"
    )
    error_message = "The function cannot create messages, or has more rights on them."
  }

  assert {
    condition = (
      google_storage_bucket_iam_member.function_uses_lake["cloud_function"].bucket == "test-lake" &&
      google_storage_bucket_iam_member.function_uses_lake["cloud_function"].role == "roles/storage.objectUser" &&
      google_storage_bucket_iam_member.function_uses_lake["cloud_function"].member == "serviceAccount:function@test"
    )
    error_message = "The function cannot read and write the lake, or has more rights on it."
  }

  assert {
    condition = (
      google_cloud_run_v2_service_iam_member.orchestrator_calls_function["cloud_function"].name == "people" &&
      google_cloud_run_v2_service_iam_member.orchestrator_calls_function["cloud_function"].role == "roles/run.invoker" &&
      google_cloud_run_v2_service_iam_member.orchestrator_calls_function["cloud_function"].member == "serviceAccount:orchestrator@test"
    )
    error_message = "The orchestrator cannot call the function, or another account can."
  }

  assert {
    condition = (
      google_storage_bucket_iam_member.orchestrator_reads_messages.bucket == "test-messages" &&
      google_storage_bucket_iam_member.orchestrator_reads_messages.role == "roles/storage.objectViewer" &&
      google_storage_bucket_iam_member.orchestrator_reads_messages.member == "serviceAccount:orchestrator@test"
    )
    error_message = "The orchestrator cannot read messages, or has more rights on them."
  }

  assert {
    condition = (
      keys(google_service_account_iam_member.users_act_as_orchestrator) == ["user:name@example.com"] &&
      google_service_account_iam_member.users_act_as_orchestrator["user:name@example.com"].role == "roles/iam.serviceAccountTokenCreator" &&
      google_service_account_iam_member.users_act_as_orchestrator["user:name@example.com"].service_account_id == "accounts/orchestrator"
    )
    error_message = "Not only orchestrator_users can impersonate the orchestrator, or they can impersonate another account."
  }

  assert {
    condition = (
      google_storage_bucket_iam_member.build_reads_sources.bucket == google_storage_bucket.builds[0].name &&
      google_storage_bucket_iam_member.build_reads_sources.role == "roles/storage.objectViewer" &&
      google_storage_bucket_iam_member.build_reads_sources.member == "serviceAccount:build@test"
    )
    error_message = "The build account cannot read the sources, or has more rights on them."
  }

  assert {
    condition = (
      google_artifact_registry_repository_iam_member.build_writes_images.repository == "people" &&
      google_artifact_registry_repository_iam_member.build_writes_images.role == "roles/artifactregistry.writer" &&
      google_artifact_registry_repository_iam_member.build_writes_images.member == "serviceAccount:build@test"
    )
    error_message = "The build account cannot write images, or has more rights on them."
  }

  assert {
    condition = (
      google_project_iam_member.build_writes_logs[0].role == "roles/logging.logWriter" &&
      google_project_iam_member.build_writes_logs[0].member == "serviceAccount:build@test"
    )
    error_message = "The build account cannot write logs, or has more rights on the project."
  }

  # Outputs

  assert {
    condition = alltrue([
      for setting in [
        "FUNCTION_URL=https://people-abcdef-ez.a.run.app",
        "FUNCTION_TIMEOUT=3600",
        "LAKE_URI=gs://test-lake",
        "MESSAGES_BUCKET=test-messages",
        "GOOGLE_CLOUD_PROJECT=test-project",
        "IMPERSONATE_SERVICE_ACCOUNT=orchestrator@test",
      ] : contains(split("\n", output.settings), setting)
    ])
    error_message = "The settings for orchestrator/.env are wrong."
  }
}

run "variables_of_one_function" {
  variables {
    function_memory = "2Gi"
    functions = {
      cloud_function = { timeout = 900, min_instances = 0, secrets = ["API_KEY", "TOKEN"] }
    }
  }

  assert {
    condition = (
      google_cloudfunctions2_function.function["cloud_function"].service_config[0].timeout_seconds == 900 &&
      google_cloudfunctions2_function.function["cloud_function"].service_config[0].available_memory == "2Gi"
    )
    error_message = "A function does not get its own variables, or not those of all functions."
  }

  assert {
    condition = [
      for variable in google_cloudfunctions2_function.function["cloud_function"].service_config[0].secret_environment_variables :
      "${variable.key}=${variable.secret}:${variable.version}"
    ] == ["API_KEY=API_KEY:latest", "TOKEN=TOKEN:latest"]
    error_message = "The function does not get its secrets."
  }

  assert {
    condition = [
      for grant in google_secret_manager_secret_iam_member.function_reads_secret :
      "${grant.member} ${grant.role} ${grant.secret_id}"
      ] == [
      "serviceAccount:function@test roles/secretmanager.secretAccessor API_KEY",
      "serviceAccount:function@test roles/secretmanager.secretAccessor TOKEN",
    ]
    error_message = "The function cannot read its secrets, or can read others."
  }

  assert {
    condition     = strcontains(output.settings, "FUNCTION_TIMEOUT=900")
    error_message = "Dagster does not get the timeout of the function."
  }
}

run "a_project_that_has_functions" {
  variables {
    create_builds_bucket = false
    build_logs           = false
  }

  assert {
    condition     = length(google_storage_bucket.builds) == 0
    error_message = "Terraform creates a bucket that exists."
  }

  assert {
    condition = (
      google_storage_bucket_iam_member.build_reads_sources.bucket == "gcf-v2-sources-123456789-us-east4" &&
      google_storage_bucket_iam_member.build_reads_sources.member == "serviceAccount:build@test"
    )
    error_message = "The build account cannot read the sources in the existing bucket."
  }

  assert {
    condition     = length(google_project_iam_member.build_writes_logs) == 0
    error_message = "The build account has a role on the project."
  }
}

run "a_network_and_a_second_region" {
  command = plan

  variables {
    function_ingress = "ALLOW_INTERNAL_AND_GCLB"
    vpc              = { network = "the-network", subnetwork = "the-subnetwork" }
    dual_region      = { location = "US", second_region = "us-east1" }
  }

  assert {
    condition = (
      google_cloudfunctions2_function.function["cloud_function"].service_config[0].ingress_settings == "ALLOW_INTERNAL_AND_GCLB" &&
      google_cloudfunctions2_function.function["cloud_function"].service_config[0].direct_vpc_egress == "VPC_EGRESS_ALL_TRAFFIC" &&
      google_cloudfunctions2_function.function["cloud_function"].service_config[0].direct_vpc_network_interface[0].network == "the-network" &&
      google_cloudfunctions2_function.function["cloud_function"].service_config[0].direct_vpc_network_interface[0].subnetwork == "the-subnetwork"
    )
    error_message = "Requests do not come and go through the network."
  }

  assert {
    condition = alltrue([
      for bucket in [google_storage_bucket.messages, google_storage_bucket.lake] :
      bucket.location == "US" && bucket.custom_placement_config[0].data_locations == toset(["US-EAST4", "US-EAST1"])
    ])
    error_message = "The lake or the messages are not in both regions."
  }
}

run "a_key" {
  command = plan

  variables {
    kms_key = "projects/keys/locations/us-east4/keyRings/ring/cryptoKeys/key"
  }

  assert {
    condition = alltrue([
      for bucket in [
        google_storage_bucket.messages, google_storage_bucket.lake,
        google_storage_bucket.sources, google_storage_bucket.builds[0],
      ] : bucket.encryption[0].default_kms_key_name == var.kms_key
    ])
    error_message = "A bucket is not encrypted with the key."
  }

  assert {
    condition     = google_artifact_registry_repository.images.kms_key_name == var.kms_key
    error_message = "The images are not encrypted with the key."
  }

  assert {
    condition = (
      length(google_kms_crypto_key_iam_member.agents_use_key) == 2 &&
      alltrue([
        for grant in google_kms_crypto_key_iam_member.agents_use_key :
        grant.crypto_key_id == var.kms_key && grant.role == "roles/cloudkms.cryptoKeyEncrypterDecrypter"
      ])
    )
    error_message = "Google's accounts cannot use the key, or have more rights on it."
  }
}

run "a_notification_channel" {
  command = plan

  variables {
    notification_channels = ["projects/test-project/notificationChannels/1"]
    functions             = { cloud_function = { max_instances = 3 } }
  }

  assert {
    condition = alltrue([
      for policy in [
        google_monitoring_alert_policy.responds_with_errors["cloud_function"],
        google_monitoring_alert_policy.is_at_its_limit["cloud_function"],
        google_monitoring_alert_policy.logs_errors["cloud_function"],
      ] : policy.notification_channels == tolist(["projects/test-project/notificationChannels/1"])
    ])
    error_message = "An alert policy does not notify the channel."
  }

  assert {
    condition     = google_monitoring_alert_policy.is_at_its_limit["cloud_function"].conditions[0].condition_threshold[0].threshold_value == 2.5
    error_message = "The policy does not know the limit of the function."
  }

  assert {
    condition     = strcontains(google_monitoring_alert_policy.logs_errors["cloud_function"].conditions[0].condition_matched_log[0].filter, "service_name = \"people\"")
    error_message = "The policy is not about this function."
  }
}

run "all_variables_set" {
  variables {
    function_name          = "f23456789-123456-89-12345678"
    function_timeout       = 600
    function_memory        = "4Gi"
    function_cpu           = "2"
    function_concurrency   = 8
    function_runtime       = "python314"
    function_max_instances = 3
    function_min_instances = 1
    messages_days          = 3
  }

  assert {
    condition = (
      google_cloudfunctions2_function.function["cloud_function"].service_config[0].timeout_seconds == 600 &&
      google_cloudfunctions2_function.function["cloud_function"].service_config[0].available_memory == "4Gi" &&
      google_cloudfunctions2_function.function["cloud_function"].service_config[0].available_cpu == "2" &&
      google_cloudfunctions2_function.function["cloud_function"].service_config[0].max_instance_request_concurrency == 8 &&
      google_cloudfunctions2_function.function["cloud_function"].service_config[0].environment_variables["THREADS"] == "9" &&
      google_cloudfunctions2_function.function["cloud_function"].build_config[0].runtime == "python314" &&
      google_cloudfunctions2_function.function["cloud_function"].service_config[0].max_instance_count == 3 &&
      google_cloudfunctions2_function.function["cloud_function"].service_config[0].min_instance_count == 1
    )
    error_message = "A variable is not passed to the function."
  }

  assert {
    condition     = one(google_storage_bucket.messages.lifecycle_rule[0].condition).age == 3
    error_message = "Messages are not deleted after messages_days."
  }

  assert {
    condition     = google_service_account.orchestrator.account_id == "f23456789-123456-orchestrator"
    error_message = "A long function name makes an account ID that Google rejects."
  }
}

run "invalid_values_are_rejected" {
  command = plan

  variables {
    project_id         = "My Project"
    region             = "us-east4-a"
    function_name      = "people_"
    messages_bucket    = "test-lake"
    messages_days      = 0
    function_timeout   = 3601
    function_runtime   = "python312"
    function_ingress   = "ALLOW_NONE"
    kms_key            = "key"
    orchestrator_users = ["name@example.com"]
    functions          = { missing = {} }
  }

  expect_failures = [
    var.project_id,
    var.region,
    var.function_name,
    var.messages_bucket,
    var.messages_days,
    var.function_timeout,
    var.function_runtime,
    var.function_ingress,
    var.kms_key,
    var.orchestrator_users,
    var.functions,
  ]
}
