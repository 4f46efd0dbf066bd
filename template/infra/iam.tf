# Who may do what. Each role is given on one bucket, repository, service or account, and none on the
# project. README.md has this as a table.

resource "google_storage_bucket_iam_member" "function_creates_messages" {
  bucket = google_storage_bucket.messages.name
  role   = "roles/storage.objectCreator" # it can neither read nor replace them
  member = google_service_account.function.member
}

resource "google_storage_bucket_iam_member" "function_uses_lake" {
  bucket = google_storage_bucket.lake.name
  role   = "roles/storage.objectUser"
  member = google_service_account.function.member
}

resource "google_storage_bucket_iam_member" "orchestrator_reads_messages" {
  bucket = google_storage_bucket.messages.name
  role   = "roles/storage.objectViewer"
  member = google_service_account.orchestrator.member
}

# A function of the second generation is called as what it is: a service of Cloud Run.
resource "google_cloud_run_v2_service_iam_member" "orchestrator_calls_function" {
  name     = google_cloudfunctions2_function.function.name
  location = var.region
  role     = "roles/run.invoker"
  member   = google_service_account.orchestrator.member
}

resource "google_service_account_iam_member" "users_act_as_orchestrator" {
  for_each = var.orchestrator_users

  service_account_id = google_service_account.orchestrator.name
  role               = "roles/iam.serviceAccountTokenCreator"
  member             = each.key
}

resource "google_storage_bucket_iam_member" "build_reads_sources" {
  bucket = google_storage_bucket.builds.name
  role   = "roles/storage.objectViewer"
  member = google_service_account.build.member
}

resource "google_artifact_registry_repository_iam_member" "build_writes_images" {
  repository = google_artifact_registry_repository.images.name
  location   = var.region
  role       = "roles/artifactregistry.writer"
  member     = google_service_account.build.member
}
