# Tests of the Cloud Run jobs. They run in `just check-infra`, without a cloud.

mock_provider "google" {}
mock_provider "time" {}

variables {
  project_id      = "test-project"
  region          = "us-east4"
  function_name   = "people"
  job_name        = "people"
  lake_bucket     = "test-lake"
  messages_bucket = "test-messages"
  sources_bucket  = "test-sources"
}

override_resource {
  target = google_service_account.job["cloud_function"]
  values = { email = "job@test", member = "serviceAccount:job@test", name = "accounts/job" }
}

override_resource {
  target = google_service_account.orchestrator
  values = { email = "orchestrator@test", member = "serviceAccount:orchestrator@test", name = "accounts/orchestrator" }
}

override_resource {
  target = google_service_account.build
  values = { email = "build@test", member = "serviceAccount:build@test", name = "accounts/build" }
}

run "defaults" {
  assert {
    condition = (
      google_cloud_run_v2_job.job["cloud_function"].name == "people" &&
      google_cloud_run_v2_job.job["cloud_function"].template[0].parallelism == 10 &&
      google_cloud_run_v2_job.job["cloud_function"].template[0].template[0].timeout == "86400s" &&
      google_cloud_run_v2_job.job["cloud_function"].template[0].template[0].service_account == "job@test" &&
      google_cloud_run_v2_job.job["cloud_function"].template[0].template[0].containers[0].resources[0].limits == tomap({ cpu = "1", memory = "1Gi" })
    )
    error_message = "The job does not have its name, its account or its limits."
  }

  assert {
    condition     = google_cloud_run_v2_job.job["cloud_function"].template[0].template[0].max_retries == 0
    error_message = "Google starts a failed task again. Dagster retries."
  }

  assert {
    condition = [
      for variable in google_cloud_run_v2_job.job["cloud_function"].template[0].template[0].containers[0].env :
      "${variable.name}=${variable.value}"
    ] == ["GOOGLE_CLOUD_PROJECT=test-project", "MESSAGES_BUCKET=test-messages"]
    error_message = "The job does not get its environment variables, or gets others."
  }

  # Roles

  assert {
    condition = (
      google_storage_bucket_iam_member.job_creates_messages["cloud_function"].bucket == "test-messages" &&
      google_storage_bucket_iam_member.job_creates_messages["cloud_function"].role == "roles/storage.objectCreator" &&
      google_storage_bucket_iam_member.job_creates_messages["cloud_function"].member == "serviceAccount:job@test"
    )
    error_message = "The job cannot create messages, or has more rights on them."
  }

  assert {
    condition = alltrue([
      for grant in [
        google_storage_bucket_iam_member.job_reads_events["cloud_function"],
        google_storage_bucket_iam_member.orchestrator_stores_events,
      ] :
      grant.bucket == "test-messages" &&
      grant.condition[0].expression == "resource.name.startsWith(\"projects/_/buckets/test-messages/objects/events/\")"
    ])
    error_message = "Rights on events are not limited to events."
  }

  assert {
    condition = [
      for grant in [
        google_cloud_run_v2_job_iam_member.orchestrator_runs_job["cloud_function"],
        google_cloud_run_v2_job_iam_member.orchestrator_views_executions["cloud_function"],
      ] :
      "${grant.name} ${grant.role} ${grant.member}"
      ] == [
      "people roles/run.jobsExecutorWithOverrides serviceAccount:orchestrator@test",
      "people roles/run.viewer serviceAccount:orchestrator@test",
    ]
    error_message = "Dagster cannot run the job and look at its executions, or has more rights on it."
  }

  assert {
    condition = (
      google_storage_bucket_iam_member.build_reads_bundles.bucket == "test-sources" &&
      google_storage_bucket_iam_member.build_reads_bundles.role == "roles/storage.objectViewer" &&
      google_storage_bucket_iam_member.build_reads_bundles.member == "serviceAccount:build@test"
    )
    error_message = "The build account cannot read the bundles, or has more rights on them."
  }

  assert {
    condition     = time_sleep.job_grants.create_duration == "90s"
    error_message = "The job is created before its roles are effective."
  }

  # Outputs

  assert {
    condition = alltrue([
      for setting in ["JOB_NAME=people", "JOB_TIMEOUT=86400", "GOOGLE_CLOUD_REGION=us-east4"] :
      contains(split("\n", output.settings), setting)
    ])
    error_message = "The settings for orchestrator/.env are wrong."
  }
}

run "variables_of_one_job" {
  variables {
    job_memory = "2Gi"
    job_gpu    = "nvidia-l4"
    vpc        = { network = "the-network", subnetwork = "the-subnetwork" }
    jobs = {
      cloud_function = { cpu = "8", memory = "32Gi", timeout = 900, parallelism = 50, secrets = ["TOKEN"] }
    }
  }

  assert {
    condition = (
      google_cloud_run_v2_job.job["cloud_function"].template[0].parallelism == 50 &&
      google_cloud_run_v2_job.job["cloud_function"].template[0].template[0].timeout == "900s" &&
      google_cloud_run_v2_job.job["cloud_function"].template[0].template[0].containers[0].resources[0].limits == tomap({ cpu = "8", memory = "32Gi", "nvidia.com/gpu" = "1" }) &&
      google_cloud_run_v2_job.job["cloud_function"].template[0].template[0].node_selector[0].accelerator == "nvidia-l4"
    )
    error_message = "A job does not get its own variables, or not those of all jobs."
  }

  assert {
    condition = (
      google_cloud_run_v2_job.job["cloud_function"].template[0].template[0].vpc_access[0].egress == "ALL_TRAFFIC" &&
      google_cloud_run_v2_job.job["cloud_function"].template[0].template[0].vpc_access[0].network_interfaces[0].network == "the-network"
    )
    error_message = "Requests of the job do not go through the network."
  }

  assert {
    condition = (
      contains(google_cloud_run_v2_job.job["cloud_function"].template[0].template[0].containers[0].env[*].name, "TOKEN") &&
      google_secret_manager_secret_iam_member.job_reads_secret["cloud_function:TOKEN"].member == "serviceAccount:job@test"
    )
    error_message = "The job does not get its secret, or cannot read it."
  }

  assert {
    condition     = strcontains(output.settings, "JOB_TIMEOUT=900")
    error_message = "Dagster does not get the timeout of the job."
  }
}

run "invalid_values_are_rejected" {
  command = plan

  variables {
    job_name        = "people_"
    job_timeout     = 604800
    job_parallelism = -1
    jobs            = { missing = {} }
  }

  expect_failures = [
    var.job_name,
    var.job_timeout,
    var.job_parallelism,
    var.jobs,
  ]
}
