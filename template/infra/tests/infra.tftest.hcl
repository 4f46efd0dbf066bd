# Tests of security and settings. They run in `just check-infra`, without a cloud.

mock_provider "google" {}

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

override_resource {
  target = google_storage_bucket.sources
  values = { project_number = 123456789 }
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
        google_storage_bucket.sources, google_storage_bucket.builds,
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
    condition     = google_storage_bucket.builds.name == "gcf-v2-sources-123456789-us-east4"
    error_message = "The bucket does not have the name that Google builds from."
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
      google_storage_bucket_iam_member.build_reads_sources.bucket == google_storage_bucket.builds.name &&
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

run "all_variables_set" {
  variables {
    function_name          = "f23456789-123456-89-12345678"
    function_timeout       = 600
    function_memory        = "4Gi"
    function_cpu           = "2"
    function_concurrency   = 8
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
    var.orchestrator_users,
    var.functions,
  ]
}
