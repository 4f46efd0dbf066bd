# Who may deploy: `just check-infra`, which needs no cloud.

mock_provider "google" {}

variables {
  project_id      = "test-project"
  region          = "us-east4"
  function_name   = "people"
  lake_bucket     = "test-lake"
  messages_bucket = "test-messages"
  sources_bucket  = "test-sources"
  gitlab_project  = { id = "1234", namespace_id = "5678" }
}

override_resource {
  target = google_service_account.deployer
  values = { email = "deployer@test", member = "serviceAccount:deployer@test", name = "accounts/deployer" }
}

override_resource {
  target = google_service_account.function
  values = { email = "function@test", member = "serviceAccount:function@test", name = "accounts/function" }
}

override_resource {
  target = google_service_account.build
  values = { email = "build@test", member = "serviceAccount:build@test", name = "accounts/build" }
}

override_resource {
  target = google_iam_workload_identity_pool.gitlab
  values = { name = "projects/1/locations/global/workloadIdentityPools/people-gitlab" }
}

run "a_push_deploys_where_deploy_on_says_so" {
  variables {
    deploy_on = "push"
  }

  assert {
    condition     = google_iam_workload_identity_pool_provider.gitlab[0].attribute_condition == "assertion.project_id == '1234' && assertion.namespace_id == '5678' && assertion.ref_protected == 'true' && assertion.ref_type == 'branch' && assertion.ref == 'main'"
    error_message = "Others than pushes to main of this repository may deploy."
  }

  assert {
    condition     = google_iam_workload_identity_pool_provider.gitlab[0].oidc[0].issuer_uri == "https://gitlab.com"
    error_message = "Tokens of somebody else are taken."
  }

  assert {
    condition = (
      google_service_account_iam_member.gitlab_acts_as_deployer[0].service_account_id == "accounts/deployer" &&
      google_service_account_iam_member.gitlab_acts_as_deployer[0].role == "roles/iam.workloadIdentityUser" &&
      google_service_account_iam_member.gitlab_acts_as_deployer[0].member == "principalSet://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/people-gitlab/attribute.project_id/1234"
    )
    error_message = "Not just this repository may act as the deployer."
  }

  assert {
    condition = (
      google_storage_bucket_iam_member.deployer_creates_sources.bucket == google_storage_bucket.sources.name &&
      google_storage_bucket_iam_member.deployer_creates_sources.role == "roles/storage.objectCreator" &&
      google_storage_bucket_iam_member.deployer_creates_sources.member == "serviceAccount:deployer@test"
    )
    error_message = "The deployer cannot create sources, or may do more."
  }

  assert {
    condition = (
      google_cloudfunctions2_function_iam_member.deployer_updates_function.cloud_function == "people" &&
      google_cloudfunctions2_function_iam_member.deployer_updates_function.role == "roles/cloudfunctions.developer" &&
      google_cloudfunctions2_function_iam_member.deployer_updates_function.member == "serviceAccount:deployer@test"
    )
    error_message = "The deployer cannot update the function, or may do more."
  }

  assert {
    condition = alltrue([
      for account, binding in {
        "accounts/function" = google_service_account_iam_member.deployer_uses_function_account
        "accounts/build"    = google_service_account_iam_member.deployer_uses_build_account
      } :
      binding.service_account_id == account &&
      binding.role == "roles/iam.serviceAccountUser" &&
      binding.member == "serviceAccount:deployer@test"
    ])
    error_message = "The deployer cannot let the function run and build, or may do more."
  }
}

run "a_release_deploys_unless_deploy_on_says_otherwise" {
  command = plan

  assert {
    condition     = google_iam_workload_identity_pool_provider.gitlab[0].attribute_condition == "assertion.project_id == '1234' && assertion.namespace_id == '5678' && assertion.ref_protected == 'true' && assertion.ref_type == 'tag'"
    error_message = "Others than releases of this repository may deploy."
  }
}

run "without_ids_nobody_deploys" {
  command = plan

  variables {
    gitlab_project = null
  }

  assert {
    condition = (
      length(google_iam_workload_identity_pool.gitlab) == 0 &&
      length(google_iam_workload_identity_pool_provider.gitlab) == 0 &&
      length(google_service_account_iam_member.gitlab_acts_as_deployer) == 0
    )
    error_message = "Something is federated, with nobody in particular."
  }
}

run "names_are_no_ids" {
  command = plan

  variables {
    gitlab_project = { id = "1234", namespace_id = "my-organization" }
    deploy_on      = "merge"
  }

  expect_failures = [var.gitlab_project, var.deploy_on]
}
