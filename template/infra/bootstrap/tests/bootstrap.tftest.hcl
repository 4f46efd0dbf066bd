mock_provider "google" {}

run "state_is_private_and_versioned" {
  command = plan

  variables {
    project_id   = "test-project"
    region       = "us-east4"
    state_bucket = "test-project-terraform-state"
  }

  assert {
    condition = (
      google_storage_bucket.state.uniform_bucket_level_access &&
      google_storage_bucket.state.public_access_prevention == "enforced"
    )
    error_message = "The bucket has access control lists, or can be made public."
  }

  assert {
    condition     = google_storage_bucket.state.versioning[0].enabled
    error_message = "Earlier versions of the state cannot be restored."
  }
}
